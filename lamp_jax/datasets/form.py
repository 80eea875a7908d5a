"""Format of a benchmark built from users' histories."""

from dataclasses import dataclass
from typing import Literal

from lamp_jax.config import Split, Work


@dataclass(frozen=True)
class BenchmarkForm:
    """Histories from which a benchmark in LaMP's format is built, and rules of building."""

    histories: str
    """File with one item of one user per row, in any order: `.csv`, `.tsv`, `.jsonl`, `.ndjson`, `.json` (an object per
    line, or a list), each also as `.gz`, or `.parquet`."""
    task: str
    """Task whose format the questions get, e.g. LaMP-3."""
    map: tuple[str, ...] = ()
    """`FIELD=COLUMN`, or `FIELD=TEXT with {column}s`: columns of `user`, `date` and the task's fields; default: the
    column of the field's name. A user id is a text or an integer; 1 and "1" are the same user."""
    join: tuple[str, ...] = ()
    """`FILE:COLUMN`: a table that fits in memory; its columns are joined to the rows with an equal COLUMN."""
    split: Split = "time"
    """`time`: a user's last item is the test target, the one before it the dev target, earlier ones train targets;
    profiles have the items before the target. `user`: each user is in one of train, dev and test only."""
    targets: Literal["last", "random"] = "last"
    """`user`: `last` takes a user's newest items as targets, and profiles have the items before them; `random` draws
    the targets, and profiles have all other items (leave one out)."""
    targets_per_user: int = 1
    """`user`: targets per user; `time`: maximum number of train targets per user (besides one for dev and one for
    test)."""
    min_profile: int = 1
    """Minimum profile size; targets with a smaller profile are dropped."""
    max_profile: int = 0
    """Maximum profile size, the newest items; 0: no limit."""
    dev_share: float = 0.1
    """`user`: fraction of users in the dev file."""
    test_share: float = 0.1
    """`user`: fraction of users in the test file."""
    date_form: Literal["date", "seconds", "milliseconds", "microseconds", "nanoseconds"] = "date"
    """Time since 1970 in this unit; or `date`: 2007, 2007-05, 2007-05-31, ISO time stamps, `Mon Apr 06 22:19:45 PDT
    2009`, RFC 2822, `January 2, 2006`, and times since 1970 whose number of digits gives the unit (10, 13, 16, 19).
    UTC unless a zone is written: `Z`, `+hh`, `+hhmm`, `+hh:mm`, UTC, GMT, EST, EDT, CST, CDT, MST, MDT, PST or PDT;
    dates with another zone are unreadable."""
    date_format: str = ""
    """Date format in Python's `strptime` codes; UTC unless the format has a zone: `%z`, or `%Z` for the names above.
    The machine's own zone is ignored."""
    encoding: str = "utf-8"
    """Encoding of CSV, TSV and JSON files, joined tables included: utf-8, latin-1, cp1252, ..."""
    columns: tuple[str, ...] = ()
    """Column names of a CSV or TSV file without a header line."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Rows of a user with equal texts (white space aside) at the same time, however it is written (a date without a
    time is midnight): `drop` keeps the first, `keep` keeps all. The report counts them."""
    round_scores: Literal["no", "up", "down", "nearest"] = "no"
    """Numbers between two labels of the task (3.5 stars): rows with them are dropped (`no`), or the numbers are
    rounded."""
    seed: int = 0
    """Random seed of the assignment of users, of `random` targets and of LaMP-1's second reference."""
    work: Work = Work()
