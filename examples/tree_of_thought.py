"""A search over half-written answers: grow some thoughts, grade each, go on from the best."""

import sgl_mlx as sgl

PUZZLE = "Anna is twice as old as Ben. Ben is 3 years older than Cleo, who is 4. How old is Anna?"
GRADES = ["1", "2", "3", "4", "5"]


def propose(s, width):
    """Ask for `width` next thoughts: branches of one text, which sampling makes differ."""
    branches = s.fork(width)
    branches += sgl.assistant(sgl.gen("thought", max_tokens=32, temperature=0.8, stop="\n"))
    return branches


def best_of(branches):
    """Return the thought with the highest grade; all are graded at the same time."""
    branches += sgl.user("From 1 (useless) to 5 (decisive), how useful is this step?")
    branches += sgl.assistant(sgl.select("grade", GRADES))
    return max(branches.states, key=lambda branch: int(branch["grade"]))["thought"]


@sgl.function
def solve(s, question=PUZZLE, depth=2, width=3):
    s += sgl.user(f"{question} What is a good first step?")
    for _ in range(depth):
        s += sgl.assistant(best_of(propose(s, width)))
        s += sgl.user("What follows from that?")
    s += sgl.assistant("The answer is" + sgl.gen("answer", max_tokens=24, temperature=0))


if __name__ == "__main__":
    with sgl.Engine() as engine:
        for turn in solve.run(backend=engine).messages():
            print(f"{turn['role']}: {turn['content']}")
