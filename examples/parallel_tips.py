"""First a list of tips, then an explanation of each tip, all at the same time."""

import sgl_mlx as sgl


@sgl.function
def explain(s, tip):
    s += sgl.user(f"Explain in two sentences why this helps: {tip}")
    s += sgl.assistant(sgl.gen("why", max_tokens=64))


@sgl.function
def tips(s, topic="sleeping well", count=3):
    s += sgl.user(f"Give me {count} short tips for {topic}.")
    s += sgl.assistant_begin()
    for number in range(1, count + 1):
        s += f"{number}." + sgl.gen(f"tip_{number}", max_tokens=16, stop=["\n", "."]) + "\n"
    s += sgl.assistant_end()

    # `run` returns before its text is generated, so these programs run at the same time.
    heads = [s[f"tip_{number}"].strip() for number in range(1, count + 1)]
    details = [explain.run(head, temperature=0) for head in heads]
    return {head: detail["why"].strip() for head, detail in zip(heads, details, strict=True)}


if __name__ == "__main__":
    with sgl.Engine() as engine:
        sgl.set_default_backend(engine)
        for head, why in tips.run(temperature=0).ret_value.items():
            print(f"* {head}\n  {why}")
