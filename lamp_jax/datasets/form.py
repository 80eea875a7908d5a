"""The form of a benchmark that is made of users' histories."""

from dataclasses import dataclass
from typing import Literal

from lamp_jax.config import Split, Work


@dataclass(frozen=True)
class BenchmarkForm:
    """Of what histories a benchmark in LaMP's format is made, and how."""

    histories: str
    """Rows of one user's one item each, in any order: `.csv`, `.tsv`, `.jsonl`, `.ndjson`, `.json` (an object a line,
    or a list), each also as `.gz`, or `.parquet`."""
    task: str
    """Task whose form the questions have, e.g. LaMP-3."""
    map: tuple[str, ...] = ()
    """`FIELD=COLUMN`, or `FIELD=TEXT with {column}s`: where `user`, `date` and the task's fields are found; a field
    that is not named has a column of its own name. A user is a text or a whole number; 1 and "1" are one user."""
    join: tuple[str, ...] = ()
    """`FILE:COLUMN`: a table that fits into memory, whose columns are added to the rows with the same COLUMN."""
    split: Split = "time"
    """`time`: a user's last item is the test target, the one before it the dev target, earlier ones train targets, and
    profiles hold what came before. `user`: each user is in one part only."""
    targets: Literal["last", "random"] = "last"
    """`user`: the targets are a user's newest items, and profiles hold what came before; or they are drawn, and
    profiles hold all others (leave one out)."""
    targets_per_user: int = 1
    """`user`: targets of each user; `time`: train targets at most (beside one for dev and one for test)."""
    min_profile: int = 1
    """Fewest items of a profile; a target with fewer is dropped."""
    max_profile: int = 0
    """Most items of a profile, of which the newest are kept; 0 for no limit."""
    dev_share: float = 0.1
    """`user`: share of the users whose questions are the dev file."""
    test_share: float = 0.1
    """`user`: share of the users whose questions are the test file."""
    date_form: Literal["date", "seconds", "milliseconds", "microseconds", "nanoseconds"] = "date"
    """Time since 1970 in this unit; or `date`: 2007, 2007-05, 2007-05-31, ISO time stamps, `Mon Apr 06 22:19:45 PDT
    2009`, RFC 2822, `January 2, 2006`, and times since 1970 whose number of digits tells the unit (10, 13, 16, 19).
    UTC unless a zone is written: `Z`, `+hh`, `+hhmm`, `+hh:mm`, UTC, GMT, EST, EDT, CST, CDT, MST, MDT, PST or PDT;
    dates with another are unreadable."""
    date_format: str = ""
    """Dates in another format, in the codes of Python's `strptime`; UTC unless the format has a zone: `%z`, or `%Z` for
    the names above, whatever this machine's zone is."""
    encoding: str = "utf-8"
    """Encoding of csv, tsv and JSON, the tables to join included: utf-8, latin-1, cp1252, ..."""
    columns: tuple[str, ...] = ()
    """Names of the columns of a csv or tsv whose first line does not name them."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Rows of a user with the same texts, but for white space, at the same moment, however that is written (a day
    without a time is its midnight): the first is kept, or all. The report counts them."""
    round_scores: Literal["no", "up", "down", "nearest"] = "no"
    """Numbers between two labels of the task (3.5 stars): rows with them are dropped, or they are rounded."""
    seed: int = 0
    """Seed of the users' parts, of `random` targets and of LaMP-1's second reference."""
    work: Work = Work()
