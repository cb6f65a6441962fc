"""The smallest program: one question, one answer.

sgl-mlx run examples/hello.py --arg name=Ada
"""

import sgl_mlx as sgl


@sgl.function
def hello(s, name="world"):
    s += sgl.user(f"Say hello to {name} in one short sentence.")
    s += sgl.assistant(sgl.gen("greeting", max_tokens=32, temperature=0))


if __name__ == "__main__":
    with sgl.Engine() as engine:
        state = hello.run(name="whoever reads this", backend=engine)
        print(state["greeting"])
