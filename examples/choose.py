"""`select` scores every choice by the model's own probabilities, so the answer is always one."""

import sgl_mlx as sgl

METHODS = {
    "average token": sgl.token_length_normalized,
    "greedy": sgl.greedy_token_selection,
    "against no context": sgl.unconditional_likelihood_normalized,
}


@sgl.function
def triage(s, message, method=sgl.token_length_normalized):
    s += "Every message goes to one of the teams billing, delivery and technical support.\n\n"
    s += "Message: My parcel has not arrived.\nTeam: delivery\n\n"
    s += "Message: I was charged twice.\nTeam: billing\n\n"
    s += f"Message: {message}\nTeam: "
    s += sgl.select("team", ["billing", "delivery", "technical support"], choices_method=method)
    if s["team"] == "technical support":  # programs branch in plain Python
        s += "\nFirst question to ask back:" + sgl.gen("question", max_tokens=24, stop="\n")


if __name__ == "__main__":
    with sgl.Engine() as engine:
        for label, method in METHODS.items():
            state = triage.run("The app crashes when I log in.", method, backend=engine)
            print(f"{label:>18}: {state['team']}")
        scores = state.get_meta_info("team")["normalized_prompt_logprobs"]
        print("mean log-probability of each choice:", [round(score, 2) for score in scores])
