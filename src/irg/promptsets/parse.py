"""Official files into prompts, one function a benchmark. Each takes layout path -> (file, content)."""

import ast
import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from irg.promptsets.prompt_set import BenchPrompt
from irg.text_files import decoded, parse_json

Contents = Mapping[str, tuple[Path, bytes]]
_EVAL = "_eval_prompts.jsonl"
_ONEIG_CLASSES = {
    "Anime_Stylization": "anime",
    "Portrait": "human",
    "General_Object": "object",
    "Text_Rendering": "text",
    "Knowledge_Reasoning": "reasoning",
}
_ONEIG_COMPANIONS = (
    "Q_D/anime.json",
    "Q_D/human.json",
    "Q_D/object.json",
    "text_content.csv",
    "style.csv",
    "gt_answer.json",
)


def companion_files(name: str, file: Path) -> dict[str, Path]:
    """Layout path -> file when only a set's main file is given: the others are taken from beside it, where they are."""
    if name == "genai_bench":
        extra = {"genai_skills.json": file.with_name("genai_skills.json")}
        files = {"genai_image.json": file} | extra
    elif name == "oneig":
        files = {"OneIG-Bench.csv": file} | {place: file.parent / place for place in _ONEIG_COMPANIONS}
    elif name == "tiif":
        if file.name.endswith(_EVAL) or not file.name.endswith("_prompts.jsonl"):
            raise ValueError(f"{file}: expected an attribute's prompts, ATTRIBUTE_prompts.jsonl")
        questions = file.name.removesuffix("_prompts.jsonl") + _EVAL
        folder = file.parent.with_name(file.parent.name.removesuffix("_prompts") + "_eval_prompts")
        near = file.parent / questions
        files = {file.name: file, questions: near if near.is_file() else folder / questions}
    else:
        files = {file.name: file}
    return {place: path for place, path in files.items() if path == file or path.is_file()}


def _geneval(contents: Contents) -> list[BenchPrompt]:
    ((file, content),) = contents.values()
    prompts = []
    for number, line in _json_lines(file, content):
        where = f"{file}, line {number + 1}"
        for entry in _field(line, "include", list, where):
            _field(entry, "class", str, where)
        prompts.append(
            BenchPrompt(f"{number:05d}", _field(line, "prompt", str, where), _field(line, "tag", str, where), line)
        )
    return prompts


def _wise(contents: Contents) -> list[BenchPrompt]:
    prompts = []
    for file, content in contents.values():
        entries = _json(file, content, list)
        for index, entry in enumerate(entries):
            where = f"{file}, entry {index}"
            number = _field(entry, "prompt_id", int, where)
            text = _field(entry, "Prompt", str, where)
            prompts.append(BenchPrompt(str(number), text, _field(entry, "Category", str, where), entry))
    prompts.sort(key=lambda prompt: int(prompt.id))
    return _check_unique(prompts, contents)


def _tiif(contents: Contents) -> list[BenchPrompt]:
    questions = {
        _attribute(place, _EVAL): dict(_json_lines(*pair)) for place, pair in contents.items() if place.endswith(_EVAL)
    }
    prompts = []
    for place, (file, content) in contents.items():
        if place.endswith(_EVAL):
            continue
        attribute = _attribute(place, "_prompts.jsonl")
        for number, line in _json_lines(file, content):
            entry = questions.get(attribute, {}).get(number)
            prompts += _tiif_pair(attribute, number, line, entry, f"{file}, line {number + 1}")
    return prompts


def _tiif_pair(attribute: str, number: int, line: dict[str, Any], questions: Any, where: str) -> list[BenchPrompt]:
    """The short and the long wording of one description, with its questions if there are any."""
    facts: dict[str, Any] = {"attribute": attribute, "line": number}
    if questions is not None:
        facts["questions"] = _field(questions, "yn_question_list", list, where)
        facts["answers"] = _field(questions, "yn_answer_list", list, where)
        if len(facts["questions"]) != len(facts["answers"]):
            raise ValueError(f"{where}: {len(facts['questions'])} questions, but {len(facts['answers'])} answers")
    return [
        BenchPrompt(
            f"{attribute}/{length}/{number}",
            _field(line, f"{length}_description", str, where),
            attribute,
            facts | {"length": length},
        )
        for length in ("short", "long")
    ]


def _genai_bench(contents: Contents) -> list[BenchPrompt]:
    ((main, content), *_) = contents.values()
    entries = _json(main, content, dict)
    skills: dict[int, list[str]] = {}
    if "genai_skills.json" in contents:
        for skill, numbers in _json(*contents["genai_skills.json"], dict).items():
            for number in numbers:
                skills.setdefault(int(number), []).append(skill)
    prompts = []
    for key, entry in entries.items():
        where = f"{main}, {key}"
        if not key.isdecimal():
            raise ValueError(f"{where}: expected a number as the prompt's id")
        own = skills.get(int(key), [])
        tag = next((level for level in ("basic", "advanced") if level in own), "")
        prompts.append(BenchPrompt(key, _field(entry, "prompt", str, where), tag, {"skills": own}))
    return prompts


def _oneig(contents: Contents) -> list[BenchPrompt]:
    file, _ = contents["OneIG-Bench.csv"]
    questions = {kind: _oneig_questions(contents, kind) for kind in ("anime", "human", "object")}
    texts = {row["id"]: _texts(row["text_content"]) for row in _rows(contents, "text_content.csv", "text_content")}
    styles = {row["id"]: row["class"] for row in _rows(contents, "style.csv", "class") if row["class"]}
    answers = _json(*contents["gt_answer.json"], dict) if "gt_answer.json" in contents else {}
    prompts = []
    for index, row in enumerate(_rows(contents, "OneIG-Bench.csv", "category", "prompt_en")):
        where = f"{file}, row {index + 1}"
        category, number = row["category"], row["id"]
        if not re.fullmatch(r"[\w-]{1,64}", number):  # images are named after it
            raise ValueError(f"{where}: {number[:64]!r} is no id: letters, digits and dashes are expected")
        if category not in _ONEIG_CLASSES:
            raise ValueError(f"{where}: category {category!r} is none of {', '.join(_ONEIG_CLASSES)}")
        kind = _ONEIG_CLASSES[category]
        facts: dict[str, Any] = {"class": kind, "number": number, "length": row.get("prompt_length", "")}
        facts |= questions.get(kind, {}).get(number, {})
        if kind == "text" and number in texts:
            facts["text_content"] = texts[number]
        if kind == "anime" and number in styles:
            facts["style"] = styles[number]
        if kind == "reasoning" and number in answers:
            facts["answer"] = answers[number]
        prompts.append(BenchPrompt(f"{kind}/{number}", row["prompt_en"], kind, facts))
    return _check_unique(prompts, contents)


def _oneig_questions(contents: Contents, kind: str) -> dict[str, dict[str, Any]]:
    """id -> its questions (number -> text) and on which questions each depends (0 is none)."""
    place = f"Q_D/{kind}.json"
    if place not in contents:
        return {}
    found = {}
    for number, entry in _json(*contents[place], dict).items():
        where = f"{contents[place][0]}, {number}"
        try:
            parsed = {key: parse_json(_field(entry, key, str, where)) for key in ("question", "dependency")}
        except ValueError as error:
            raise ValueError(f"{where}: not valid JSON: {error}") from error
        found[number] = {"questions": parsed["question"], "dependency": parsed["dependency"]}
    return found


PARSERS: dict[str, Callable[[Contents], list[BenchPrompt]]] = {
    "geneval": _geneval,
    "wise": _wise,
    "tiif": _tiif,
    "genai_bench": _genai_bench,
    "oneig": _oneig,
}


def _attribute(place: str, ending: str) -> str:
    return place.rsplit("/", 1)[-1].removesuffix(ending)


def _text(file: Path, content: bytes) -> str:
    try:
        return decoded(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _json(file: Path, content: bytes, kind: type) -> Any:
    try:
        data = parse_json(_text(file, content))
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(data, kind):
        raise ValueError(f"{file}: expected a JSON {'object' if kind is dict else 'list'}")
    return data


def _json_lines(file: Path, content: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 0, object) for each line that is not empty. Only line feeds end a line: texts may hold U+2028."""
    number = 0
    for place, line in enumerate(_text(file, content).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            data = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{file}, line {place}: not valid JSON: {error}") from error
        if not isinstance(data, dict):
            raise ValueError(f"{file}, line {place}: expected a JSON object")
        yield number, data
        number += 1


def _rows(contents: Contents, place: str, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV file, none if it is not there; every row has an id and these columns."""
    if place not in contents:
        return []
    file, content = contents[place]
    csv.field_size_limit(1 << 24)
    try:
        rows = list(csv.DictReader(io.StringIO(_text(file, content), newline="")))
    except csv.Error as error:
        raise ValueError(f"{file}: not a CSV file: {error}") from error
    for number, row in enumerate(rows, start=1):
        for column in ("id", *columns):
            if row.get(column) is None:
                raise ValueError(f"{file}, row {number}: the column {column!r} is missing")
    return rows


def _texts(text: str) -> list[str]:
    """The list of texts that an image should show, written as a Python list."""
    try:
        texts = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        texts = None
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise ValueError(f"text_content.csv: expected a list of texts, got {text[:60]!r}")
    return texts


def _field(data: Any, name: str, kind: type, where: str) -> Any:
    if not isinstance(data, dict) or name not in data:
        raise ValueError(f"{where}: the field {name!r} is missing")
    value = data[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where}: the field {name!r} must be of type {kind.__name__}, got {str(value)[:40]!r}")
    return value


def _check_unique(prompts: list[BenchPrompt], contents: Contents) -> list[BenchPrompt]:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            files = ", ".join(str(file) for file, _ in contents.values())
            raise ValueError(f"{files}: two prompts with the id {prompt.id}")
        seen.add(prompt.id)
    return prompts
