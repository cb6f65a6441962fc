"""The two programs that `sgl-mlx demo` runs: one shares a prefix by forks, one in a batch."""

from __future__ import annotations

from typing import Any

import sgl_mlx as sgl

GUIDE = (
    "You are a city guide. You know the streets, markets, parks and kitchens of every large town, "
    "you like to walk, and you never send anyone to a place that is closed. You suggest what "
    "people who live there would do: one thing at a time, near at hand, for little money. You "
    "mind the weather and the time of day, you name the dish rather than the restaurant, and you "
    "keep every suggestion to a single short sentence without lists or exclamation marks."
)
HOURS = ["morning", "afternoon", "evening"]


@sgl.function
def day_out(s: Any, city: str) -> None:
    """Write a tip for each part of a day in three forks of one prompt, and select the best part."""
    s += sgl.system(GUIDE)
    s += sgl.user(f"I have one day in {city}. What should I do?")
    branches = s.fork(len(HOURS))
    for branch, hour in zip(branches.states, HOURS, strict=True):
        tip = sgl.gen("tip", max_tokens=24, stop=[".", "\n"])
        branch += sgl.assistant(f"In the {hour}," + tip)
    branches.join()
    tips = zip(HOURS, s["tip"], strict=True)
    s += sgl.assistant(" ".join(f"In the {hour}, {tip.strip()}." for hour, tip in tips))
    s += sgl.user("Which part of the day will I remember?")
    s += sgl.assistant("The " + sgl.select("best", HOURS) + ".")


@sgl.function
def judge_review(s: Any, review: str) -> None:
    """Judge a review as good or bad, after examples that are the same for every review."""
    s += "Review: The soup was cold and so was the waiter.\nVerdict: bad\n\n"
    s += "Review: Fresh bread, kind people, I will be back.\nVerdict: good\n\n"
    s += "Review: We waited an hour for dry fish.\nVerdict: bad\n\n"
    s += f"Review: {review}\nVerdict: " + sgl.select("verdict", ["good", "bad"])


CITIES = ["Lisbon", "Kyoto"]
REVIEWS = [
    "The best pasta I have ever had.",
    "My steak was burnt and the wine was sour.",
    "Lovely garden, friendly staff, fair prices.",
    "Too loud, too salty and far too expensive.",
]
