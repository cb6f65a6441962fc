"""A judge reads an article once and grades it along several dimensions at the same time."""

from pathlib import Path

import sgl_mlx as sgl

ARTICLE = Path(__file__).with_name("article.txt").read_text("utf-8")
DIMENSIONS = {
    "clarity": "Is it easy to follow?",
    "evidence": "Are its claims backed by facts?",
    "balance": "Does it give room to other views?",
    "style": "Is it a pleasure to read?",
}


@sgl.function
def judge(s, article=ARTICLE):
    s += sgl.system("You judge articles briefly and fairly.")
    s += sgl.user("Here is an article.\n\n" + article)
    s += sgl.assistant("I have read it.")

    branches = s.fork(len(DIMENSIONS))  # the article is computed once and read by all
    for branch, (name, question) in zip(branches.states, DIMENSIONS.items(), strict=True):
        branch += sgl.user(f"Judge its {name}. {question} Answer in one sentence.")
        branch += sgl.assistant(sgl.gen("verdict", max_tokens=32, temperature=0))
    branches.join()

    verdicts = zip(DIMENSIONS, s["verdict"], strict=True)
    found = "\n".join(f"{name}: {verdict.strip()}" for name, verdict in verdicts)
    s += sgl.user(f"You found:\n{found}\nGive the article one grade from A (best) to D.")
    s += sgl.assistant("Grade: " + sgl.select("grade", ["A", "B", "C", "D"]))


if __name__ == "__main__":
    with sgl.Engine() as engine:
        for reading in ("first", "second"):
            state = judge.run(backend=engine)
            stats = engine.get_server_info()["stats"]
            print(f"{reading} reading: grade {state['grade']}; so far {stats['cached_tokens']} of")
            print(f"  {stats['prompt_tokens']} prompt tokens came from the cache")
