"""A search over half-written answers: grow every thought, score each, go on with the best."""

import sgl_mlx as sgl

GRADES = ["1", "2", "3", "4", "5"]


def propose(s, width):
    """`width` continuations of the thoughts so far; they differ by their seeds' noise alone."""
    branches = s.fork(width)
    branches += sgl.assistant("Next step: " + sgl.gen("step", max_tokens=32, stop="\n"))
    return branches.states


def grade(branch):
    """The expected grade: every grade weighted by its probability, not only the likeliest."""
    branch += sgl.user("How useful is this step, from 1 (useless) to 5 (decisive)?")
    branch += sgl.assistant("Grade: " + sgl.select("grade", GRADES))
    return branch


@sgl.function
def solve(s, question, depth=2, width=3):
    s += sgl.user(f"{question} Think in short steps.")
    for _ in range(depth):
        thoughts = propose(s, width)
        graded = [grade(thought.fork(1)[0]) for thought in thoughts]  # all graded side by side
        best = max(range(width), key=lambda i: int(graded[i]["grade"]))
        s += sgl.assistant("Next step: " + thoughts[best]["step"])
    s += sgl.user("So what is the answer?")
    s += sgl.assistant("The answer is " + sgl.gen("answer", max_tokens=24, stop="."))


if __name__ == "__main__":
    puzzle = (
        "Anna is twice as old as Ben, who is 3 years older than Cleo, who is 4. How old is Anna?"
    )
    with sgl.Engine() as engine:
        print(solve.run(puzzle, backend=engine, temperature=0.7).text())
