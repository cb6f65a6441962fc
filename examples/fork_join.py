"""Three branches go on from one prefix at the same time; the parent reads what they wrote."""

import sgl_mlx as sgl

VIEWS = ["a cyclist", "a shopkeeper", "a bus driver"]


@sgl.function
def street(s, plan="close the main street to cars on Sundays"):
    s += sgl.system("You speak as the person you are asked to be, in one sentence.")
    s += sgl.user(f"The town wants to {plan}.")

    branches = s.fork(len(VIEWS))  # the tokens so far are computed once, for all branches
    for branch, view in zip(branches.states, VIEWS, strict=True):
        branch += sgl.assistant(f"As {view}, I think" + sgl.gen("view", max_tokens=32))
    branches.join()  # gathers "view" into a list, in the order of the branches

    opinions = "\n".join(f"- {view}" for view in s["view"])
    s += sgl.assistant("What people say:\n" + opinions + "\n")
    s += sgl.user("Sum this up in one sentence.")
    s += sgl.assistant(sgl.gen("summary", max_tokens=48))


if __name__ == "__main__":
    with sgl.Engine() as engine:
        state = street.run(backend=engine, temperature=0)
        for who, view in zip(VIEWS, state["view"], strict=True):
            print(f"{who}: {view.strip()}")
        print("in short:", state["summary"].strip())
