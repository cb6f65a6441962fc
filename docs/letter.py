"""Answers a letter to a library: sorts it, looks at two sides of it, replies, judges the reply."""

import sgl_mlx as sgl


@sgl.function
def sort(s, letter):
    s += "Letters to a library are about books, fees or rooms.\nLetter: " + letter
    s += "\nThis one is about" + sgl.select("subject", [" books", " fees", " rooms"])


@sgl.function
def check(s, reply):
    s += "A good reply of a help desk is polite and short, answers what was asked, "
    s += "and promises nothing that a library cannot keep.\n"
    s += "Reply: " + reply + "\nThis reply is" + sgl.select("verdict", [" good", " bad"])


@sgl.function
def answer(s, letter):
    s += "Letter: " + letter + "\n\n"
    s += "You work at the help desk of a public library.\n"
    s += "Answer the letter politely and in plain words.\n"
    s += "Never promise to waive a fee.\n\n"
    views = s.fork(2)
    views += lambda i: (
        "Read the letter once more and say in a few words, without judging, "
        + ["what is asked for:", "how the writer feels:"][i]
        + sgl.gen("view", stop="\n")
    )
    views.join()
    subject = sort(letter)["subject"]
    s += "Subject:" + subject + "\nAsked for:" + s["view"][0] + "\nMood:" + s["view"][1]
    s += "\nReply:" + sgl.gen("reply", max_tokens=100)
    return check(s["reply"])["verdict"]
