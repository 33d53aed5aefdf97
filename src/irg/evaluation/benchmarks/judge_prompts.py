"""What vision-language judges are asked, in our words. Every result file pins the hash of the text that was used."""

from collections.abc import Sequence

WISE = """Judge one generated picture against the request it was made for. Be strict: when in doubt between two scores,
give the lower one.

Request: "{prompt}"
What the picture has to show to be right: "{explanation}"

Give three scores, each 0, 1 or 2.

Consistency: does the picture show what the request means, including what it only implies?
0 - a key element is missing or contradicted. 1 - partly there, with clear deviations.
2 - everything is there and right.

Realism: could it be a photograph of the real world?
0 - physically implausible or plainly artificial. 1 - believable on the whole, with visible flaws.
2 - light, materials and space are all as in a photograph.

Aesthetic Quality: how well is it composed, coloured and finished?
0 - poor. 1 - ordinary. 2 - outstanding; give this rarely.

Answer with exactly these three lines and nothing else:
Consistency: <score>
Realism: <score>
Aesthetic Quality: <score>"""

TIIF = """Look at the picture and answer each of the {count} questions below with yes or no, judging only by what can be
seen in it. Write one line for each question, in their order, {count} lines in all. Begin each line with yes or no, then
a short reason. Write nothing before, between or after these lines.

{questions}"""

ONEIG_ALIGNMENT = """{question} Answer with "Yes" or "No" only, without a full stop."""

READ_TEXT = """Write down all text that can be read in this picture, word for word, from top to bottom, and
nothing else. If there is no text, answer with an empty pair of brackets: []"""


def wise_question(prompt: str, explanation: str, rubric: str | None = None) -> str:
    """The question for one WISE image; ``rubric`` is another text with {prompt} and {explanation} in it."""
    return (rubric or WISE).replace("{prompt}", prompt).replace("{explanation}", explanation)


def tiif_question(questions: Sequence[str]) -> str:
    """One question for all yes/no questions about a TIIF image."""
    lines = "\n".join(f"{number}. {question.strip()}" for number, question in enumerate(questions, start=1))
    return TIIF.replace("{count}", str(len(questions))).replace("{questions}", lines)
