"""Rebuilding of LaMP-6 from the Avocado archives: location of mails, parsing of subject and body, replacement of
ids."""

import contextlib
import email
import email.policy
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lamp_jax.config import Part
from lamp_jax.data.files import Question, stream_questions, write_predictions, write_questions
from lamp_jax.data.layout import PARTS
from lamp_jax.errors import LampError
from lamp_jax.runs.workers import map_in_processes
from lamp_jax.tasks.catalog import find_task

TASK = find_task("LaMP-6")
Replies = Literal["keep", "strip"]

_INSTRUCTION = TASK.instruction(TASK.input_for(""))
_LINE_BREAK = re.compile(r"[\r\n]+[ \t]*")
_ENCODED_WORD = r"=\?[^?\s]+\?[bBqQ]\?(?:[^?\s]|[ \t]|\?(?!=))*\?="
_ENCODED_WORDS = re.compile(rf"{_ENCODED_WORD}(?:[ \t]*{_ENCODED_WORD})*")
_EARLIER_MAILS = re.compile(
    r"^[ \t]*-{2,}[ \t]*(?i:Original Message)[ \t]*-{2,}.*"
    # Mailers fold the line that introduces the quotation.
    r"|^On\b[^\n]{1,200}(?:\n[^\n]{0,200})?\bwrote:[ \t]*$.*",
    re.DOTALL | re.MULTILINE,
)
_QUOTED_LINE = re.compile(r"^>.*\n?", re.MULTILINE)


class Mail(NamedTuple):
    """Subject and body of a mail, as text."""

    subject: str
    body: str


@dataclass
class RequestedMails:
    """Ids in the id files: of all mails, and of the questions' mails of each part."""

    mails: set[str] = field(default_factory=set)
    questions: dict[Part, set[str]] = field(default_factory=dict)


class MailLocations(NamedTuple):
    """Archive members of mails by archive and id, and the number of further copies of these mails."""

    members: dict[Path, dict[str, str]]
    copies: int

    @property
    def ids(self) -> set[str]:
        return {key for members in self.members.values() for key in members}


def find_id_files(directory: str | Path) -> dict[Part, Path]:
    """Id file of each part, in `directory` or in its subdirectory of the part. LampError without train or dev."""
    found: dict[Part, Path] = {}
    for part in PARTS:
        name = f"{part}_questions.json"
        paths = (Path(directory) / name, Path(directory) / part / name)
        if path := next(filter(Path.is_file, paths), None):
            found[part] = path
        elif part != "test":
            raise LampError(f"{directory}: neither {name} nor {part}/{name}; give the directory of LaMP-6's id files")
    return found


def find_archives(directory: str | Path) -> list[Path]:
    """Zip files of a directory, sorted. LampError where it does not exist, or has none."""
    expected = "give the directory of the zips, avocado-1.0.2/data/text"
    if not Path(directory).is_dir():
        raise LampError(f"{directory}: no such directory; {expected}")
    archives = sorted(path for path in Path(directory).iterdir() if path.suffix.lower() == ".zip")
    if not archives:
        raise LampError(f"{directory}: contains no zip files; {expected}")
    return archives


def mail_id(name: str) -> str:
    """Id of a mail from its file name, with or without directories and `.txt`."""
    return name.rpartition("/")[2].removesuffix(".txt")


def read_ids(files: Mapping[Part, Path]) -> RequestedMails:
    """Mails that id files name. LampError, with file and question, for a text that is not an id."""
    requested = RequestedMails()
    for part, path in files.items():
        requested.questions[part] = set()
        for question in stream_questions(path):
            where = f"{path}, question {question.id!r}"
            requested.questions[part].add(_checked_id(question.input, where))
            for item in question.profile:
                requested.mails.add(_checked_id(item.get("text"), f"{where}, profile item {item['id']!r}"))
        requested.mails |= requested.questions[part]
    return requested


def _checked_id(text: Any, where: str) -> str:
    if not isinstance(text, str) or not re.fullmatch(r"\S+", text):
        rebuilt = isinstance(text, str) and text.startswith(_INSTRUCTION)
        hint = "this file is rebuilt already" if rebuilt else "is this an id file of LaMP-6?"
        raise LampError(f"{where}: expected the id of a mail, found {repr(text)[:60]}; {hint}")
    return mail_id(text)


def locate_mails(archives: Iterable[Path], wanted: Collection[str]) -> MailLocations:
    """Locations of the mails with these ids; of several copies that of the first archive.

    Raises LampError for a damaged archive, and for an encrypted mail.
    """
    members: dict[Path, dict[str, str]] = {}
    found: set[str] = set()
    copies = 0
    for archive in archives:
        for member in _list_members(archive):
            key = mail_id(member.filename)
            if key not in wanted:
                continue
            if key in found:
                copies += 1
                continue
            if member.flag_bits & 1:
                raise LampError(f"{archive}, {member.filename}: encrypted; create the zip again without a password")
            found.add(key)
            members.setdefault(archive, {})[key] = member.filename
    return MailLocations(members, copies)


def _list_members(archive: Path) -> list[zipfile.ZipInfo]:
    with _naming_zip(str(archive)), zipfile.ZipFile(archive) as file:
        return file.infolist()


@contextlib.contextmanager
def _naming_zip(name: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
        raise LampError(f"{name}: cannot be unzipped ({error}); copy the zip from the release again") from None


def check_parts_not_empty(requested: RequestedMails, located: MailLocations) -> None:
    """Raises LampError where no archive has the mail of any question of a part."""
    found = located.ids
    for part, questions in requested.questions.items():
        if found.isdisjoint(questions):
            raise LampError(
                f"{part}: no archive has the mail of any of its {len(questions)} questions, so "
                "that the part would be empty; give the archives of these mails"
            )


def read_mails(located: MailLocations, *, replies: Replies, workers: int) -> Iterator[dict[str, Mail]]:
    """Mails of each archive by id, in the archives' order, for any number of processes.

    Raises LampError for a damaged member.
    """
    processes = min(workers, len(located.members))
    return map_in_processes(partial(_read_archive, replies=replies), located.members.items(), processes=processes)


def _read_archive(located: tuple[Path, Mapping[str, str]], *, replies: Replies) -> dict[str, Mail]:
    archive, members = located
    mails = {}
    with zipfile.ZipFile(archive) as file:
        for key, member in members.items():
            with _naming_zip(f"{archive}, {member}"):
                raw = file.read(member)
            mail = parse_mail(raw)
            mails[key] = mail if replies == "keep" else mail._replace(body=strip_replies(mail.body))
    return mails


def parse_mail(raw: bytes) -> Mail:
    """Subject ("" where there is none) and body of a mail. Any bytes are accepted: malformed parts are kept unchanged.

    The body is the text/plain parts that are not attachments, joined by a newline; where these are empty, the text/html
    parts as text. Line ends are newlines, and white space at both ends is removed.
    """
    # The other policies parse headers strictly, and fail on some of the malformed ones.
    message = email.message_from_bytes(raw, policy=email.policy.compat32)
    subject = next((value for name, value in message.raw_items() if name.lower() == "subject"), "")
    leaves = list(_shown_leaves(message))
    body = _text_of(leaves, "text/plain") or html_text(_text_of(leaves, "text/html"))
    return Mail(_header_text(subject), body)


def _text_of(leaves: Iterable[Message], kind: str) -> str:
    return "\n".join(_leaf_text(leaf) for leaf in leaves if _content_type(leaf) == kind).strip()


def _content_type(leaf: Message) -> str:
    # A leaf that claims to be a multipart has lost its boundaries: a plain body with the headers of another mail.
    return "text/plain" if leaf.get_content_maintype() == "multipart" else leaf.get_content_type()


def _shown_leaves(message: Message) -> Iterator[Message]:
    """Leaves of the mail's own text, without attachments and their contents."""
    if message.get_content_maintype() == "message" or message.get_content_disposition() == "attachment":
        return
    if message.is_multipart():
        for part in message.get_payload():
            yield from _shown_leaves(part)  # pyright: ignore[reportArgumentType] (a multipart's payload is messages)
    elif not message.get_filename():
        yield message


def _leaf_text(leaf: Message) -> str:
    raw = leaf.get_payload(decode=True)
    assert isinstance(raw, bytes)  # true of every leaf's payload
    return _decode(raw, leaf.get_content_charset()).replace("\r\n", "\n").replace("\r", "\n")


def _header_text(value: str) -> str:
    raw = _LINE_BREAK.sub(" ", value).encode("ascii", "surrogateescape")
    text = _ENCODED_WORDS.sub(_decode_words, _decode(raw))
    return _LINE_BREAK.sub(" ", text).strip()


def _decode_words(words: re.Match[str]) -> str:
    try:
        return "".join(_decode(raw, charset) for raw, charset in decode_header(words[0]))
    except HeaderParseError:  # not base64
        return words[0]


def _decode(raw: bytes, charset: str | None = None) -> str:
    """Text decoded by this charset; if that is unknown or fails, by UTF-8, and else by Latin-1, which never fails."""
    for name in (charset or "utf-8", "utf-8"):
        with contextlib.suppress(LookupError, ValueError):
            return raw.decode(name)
    return raw.decode("latin-1")


def html_text(html: str) -> str:
    """Visible text of an HTML page, one line per HTML block, with at most one empty line between blocks."""
    reader = _HtmlReader()
    # HTML treats these as comments up to the next `>`; the parser would fail on unknown ones.
    reader.feed(html.replace("<![", "<! "))
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.pieces).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


class _HtmlReader(HTMLParser):
    _HIDDEN = ("script", "style", "title")
    _BLOCK = re.compile(r"blockquote|br|div|h[1-6r]|li|ol|p|pre|table|tr|ul")

    def __init__(self):
        super().__init__()
        self.pieces: list[str] = []
        self._hidden = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._HIDDEN:
            self._hidden = tag
        self._break_line(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == self._hidden:
            self._hidden = ""
        if tag not in ("br", "hr"):  # `<br/>` begins and ends
            self._break_line(tag)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.pieces.append(re.sub(r"\s+", " ", data))

    def _break_line(self, tag: str) -> None:
        if self._BLOCK.fullmatch(tag):
            self.pieces.append("\n")
        elif tag in ("td", "th"):
            self.pieces.append(" ")


def strip_replies(body: str) -> str:
    """Body without quoted mails: lines that begin with `>`, and introduced quotes with everything that follows."""
    return _QUOTED_LINE.sub("", _EARLIER_MAILS.sub("", body)).strip()


def write_part(part: Part, source: Path, folder: Path, *, mails: Mapping[str, Mail]) -> Counter[str]:
    """Writes a part's questions and, except for test, references. Items and questions without a mail are left out.

    Returns counts: `questions` written, `dropped_questions`, and `dropped_items` of the questions written.
    """
    counts: Counter[str] = Counter()
    references: dict[str, str] = {}
    rebuilt = _rebuild(stream_questions(source), mails, references=references, counts=counts)
    counts["questions"] = write_questions(folder / f"{part}_questions.json", rebuilt)
    if part != "test":
        write_predictions(folder / f"{part}_outputs.json", TASK, references)
    return counts


def _rebuild(
    questions: Iterable[Question], mails: Mapping[str, Mail], *, references: dict[str, str], counts: Counter[str]
) -> Iterator[Question]:
    for question in questions:
        mail = mails.get(mail_id(question.input))
        if mail is None:
            counts["dropped_questions"] += 1
            continue
        pairs = [(item, mails.get(mail_id(item["text"]))) for item in question.profile]
        profile = tuple({**item, "text": found.body, "title": found.subject} for item, found in pairs if found)
        counts["dropped_items"] += len(pairs) - len(profile)
        references[question.id] = mail.subject
        yield replace(question, input=TASK.input_for(mail.body), profile=profile, output=None)
