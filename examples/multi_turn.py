"""A conversation in which Python asks. Every turn finds the turns before it in the cache."""

import sgl_mlx as sgl

QUESTIONS = ["Name a river in Europe.", "Which sea does it reach?", "Name a city on its way."]


@sgl.function
def interview(s, questions=tuple(QUESTIONS)):
    s += sgl.system("You answer in one short sentence.")
    for turn, question in enumerate(questions):
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen(f"answer_{turn}", max_tokens=32, temperature=0))


if __name__ == "__main__":
    with sgl.Engine() as engine:
        state = interview.run(backend=engine)
        for turn, question in enumerate(QUESTIONS):
            print(f"{question}\n  {state[f'answer_{turn}']}")
            meta = state.get_meta_info(f"answer_{turn}")
            print(f"  ({meta['cached_tokens']} of {meta['prompt_tokens']} prompt tokens cached)")
