"""Typed fields from free text: each answer is constrained to the form that the program needs."""

import json

import sgl_mlx as sgl

SHOWN = """Notice: The Tin Whistles play at the Old Mill on Friday at 21:15. Entry 9 euros.
Time: 21:15
Day: Friday
Price in euros: 9
Event: {"band": "The Tin Whistles", "place": "Old Mill"}

"""
NOTICE = "The Harbour Quartet plays at the Customs House on Sunday at 19:30. Tickets are 18 euros."
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
EVENT = {
    "type": "object",
    "properties": {"band": {"type": "string"}, "place": {"type": "string"}},
    "required": ["band", "place"],
    "additionalProperties": False,
}


@sgl.function
def extract(s, notice=NOTICE):
    s += SHOWN + f"Notice: {notice}\nTime: "
    s += sgl.gen("time", regex=r"([01]\d|2[0-3]):[0-5]\d", temperature=0) + "\nDay: "
    s += sgl.select("day", DAYS) + "\nPrice in euros: "
    s += sgl.gen_int("price", max_tokens=4, temperature=0) + "\nEvent: "
    s += sgl.gen("event", json_schema=EVENT, temperature=0)


if __name__ == "__main__":
    with sgl.Engine() as engine:
        state = extract.run(backend=engine)
        event, meta = json.loads(state["event"]), state.get_meta_info("event")
        print(f"{state['day']} {state['time']}, {int(state['price'])} euros")
        print(event["band"], "at", event["place"])
        print(meta["forced_tokens"], "of", meta["completion_tokens"], "tokens of JSON were forced")
