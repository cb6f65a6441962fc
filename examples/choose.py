"""`select` scores every choice by the model's own probabilities, so one of them is chosen."""

import sgl_mlx as sgl

METHODS = {
    "average token": sgl.token_length_normalized,
    "greedy": sgl.greedy_token_selection,
    "against no context": sgl.unconditional_likelihood_normalized,
}


@sgl.function
def read_review(s, review, method=sgl.token_length_normalized):
    s += "Review: The soup was cold and so was the waiter.\nVerdict: bad\n\n"
    s += "Review: Fresh bread, kind people, I will be back.\nVerdict: good\n\n"
    s += f"Review: {review}\nVerdict: "
    s += sgl.select("verdict", ["good", "bad"], choices_method=method)
    if s["verdict"] == "bad":  # programs branch in plain Python
        s += "\nComplaint:" + sgl.gen("complaint", max_tokens=16, stop="\n", temperature=0)


if __name__ == "__main__":
    with sgl.Engine() as engine:
        for label, method in METHODS.items():
            state = read_review.run("My steak was burnt.", method, backend=engine)
            print(f"{label:>18}: {state['verdict']}, complaint:{state['complaint']}")
        scores = state.get_meta_info("verdict")["normalized_prompt_logprobs"]
        print("mean log-probability of good and bad:", [round(score, 2) for score in scores])
