"""Account for every recording and every person found: used, or left out and why. The sums always add up."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

from raypipe.core.record import FrozenModel
from raypipe.recordings.tables import list_some

NO_RECORDING = "no recording in its folder"
NO_FOLDER = "in participants.tsv only"
ONLY_LEFT_OUT = "all recordings left out"
"""Reasons for leaving people out."""
UNREADABLE = "unreadable"
"""Reason for leaving a recording or a file out."""


class LeftOut(FrozenModel):
    """A recording or a file that is not in the store."""

    name: str
    """The recording's key, or the path of a file in its BIDS folder."""
    person: str
    """Subject; empty for a file outside a subject's folder."""
    reason: str
    """Kind of reason, by which recordings are counted."""
    detail: str = ""
    """The message of an error, or the reasons for which its windows were left out."""


class Accounting(FrozenModel):
    """What became of everything that `prepare` found."""

    recordings_found: int
    """Recordings, and files that look like some."""
    recordings_used: int
    """Recordings with at least one window in the store."""
    recordings_left_out: tuple[LeftOut, ...]
    people_found: int
    """People with a folder or a row in participants.tsv."""
    people_used: int
    people_left_out: dict[str, tuple[str, ...]]
    """People without a window in the store, by reason."""
    parts_left_out: dict[str, dict[str, int]]
    """Numbers of windows, trials and events left out, by reason and person."""
    channels_left_out: dict[str, dict[str, int]]
    """Numbers of recordings in which a channel was left out, by type or reason and by name."""
    notes: tuple[str, ...] = ()
    """Other facts that a reader of the scores should know, each a sentence."""

    def counts(self) -> dict[str, int]:
        """Return the numbers of recordings, and of parts of recordings, left out for each reason."""
        recordings = Counter(each.reason for each in self.recordings_left_out)
        return dict(recordings) | {reason: sum(by.values()) for reason, by in self.parts_left_out.items()}

    def lines(self) -> list[str]:
        """Return the account as lines of text; of each reason, a few names are given."""
        names = defaultdict(list)
        for each in self.recordings_left_out:
            names[each.reason].append(each.name)
        lines = [
            _balance("recordings", self.recordings_found, self.recordings_used, names),
            _balance("people", self.people_found, self.people_used, self.people_left_out),
        ]
        for reason, by_person in self.parts_left_out.items():
            people = list_some(f"{person} {n}" for person, n in sorted(by_person.items(), key=lambda each: -each[1]))
            lines.append(f"left out: {sum(by_person.values())} {reason} (by person: {people})")
        for reason, by_name in self.channels_left_out.items():
            lines.append(f"channels left out ({reason}): {list_some(by_name, 8)}")
        return [*lines, *self.notes]


def _balance(what: str, found: int, used: int, left_out: Mapping[str, Iterable[str]]) -> str:
    reasons = [(reason, list(names)) for reason, names in left_out.items()]
    reasons.sort(key=lambda each: -len(each[1]))
    shown = "; ".join(f"{reason}: {len(names)} ({list_some(names)})" for reason, names in reasons)
    total = sum(len(names) for _, names in reasons)
    return f"{what}: {found} found, {used} used, {total} left out" + (f": {shown}" if shown else "")


class Ledger:
    """Collect the account while recordings are selected, read and cut.

    Attributes
    ----------
    people
        The reason for which a person has no recording, by person; empty for people with recordings.
    person_of
        The person of each recording or file that was found, by its name.
    """

    def __init__(self) -> None:
        self.people: dict[str, str] = {}
        self.person_of: dict[str, str] = {}
        self.left_out: dict[str, LeftOut] = {}
        self.parts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.channels: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.notes: list[str] = []

    def find_person(self, person: str, reason: str) -> None:
        """Note a person, and the reason for having no recording that holds unless one is found."""
        self.people.setdefault(person, reason)

    def find(self, name: str, person: str) -> None:
        """Note a recording or file that was found."""
        self.person_of[name] = person
        if person:
            self.people[person] = ""

    def leave_out(self, name: str, reason: str, detail: str = "") -> None:
        """Note that a recording that was found is not used."""
        self.left_out[name] = LeftOut(name=name, person=self.person_of[name], reason=reason, detail=detail)

    def leave_parts_out(self, person: str, counts: Mapping[str, int]) -> None:
        """Count windows, trials or events that are left out of a person's recordings."""
        for reason, count in counts.items():
            if count:
                self.parts[reason][person] += count

    def leave_channels_out(self, reasons: Mapping[str, str]) -> None:
        """Count the channels of one recording that are left out, by name with their reasons."""
        for name, reason in reasons.items():
            self.channels[reason][name] += 1

    def add_notes(self, notes: Iterable[str]) -> None:
        """Add notes about single recordings, equal ones once with their number."""
        self.notes += [f"{note}{f' ({n} recordings)' if n > 1 else ''}." for note, n in Counter(notes).items()]

    def counts(self) -> dict[str, int]:
        """Return the numbers of recordings, and of parts of recordings, left out so far for each reason."""
        recordings = Counter(each.reason for each in self.left_out.values())
        return dict(recordings) | {reason: sum(by.values()) for reason, by in self.parts.items()}

    def close(self) -> Accounting:
        """Return the account.

        Raises
        ------
        RuntimeError
            The sums do not add up, which is a bug.
        """
        used = [name for name in self.person_of if name not in self.left_out]
        people_used = {self.person_of[name] for name in used}
        people_left_out: defaultdict[str, list[str]] = defaultdict(list)
        for person in self.people:
            if person not in people_used:
                people_left_out[self._reason_of(person)].append(person)
        account = Accounting(
            recordings_found=len(self.person_of),
            recordings_used=len(used),
            recordings_left_out=tuple(self.left_out.values()),
            people_found=len(self.people),
            people_used=len(people_used),
            people_left_out={reason: tuple(names) for reason, names in people_left_out.items()},
            parts_left_out={reason: dict(by) for reason, by in self.parts.items()},
            channels_left_out={reason: dict(by) for reason, by in self.channels.items()},
            notes=tuple(self.notes),
        )
        check_sums(account)
        return account

    def _reason_of(self, person: str) -> str:
        reasons = dict.fromkeys(each.reason for each in self.left_out.values() if each.person == person)
        return self.people[person] or " and ".join(reasons) or ONLY_LEFT_OUT


def check_sums(account: Accounting) -> None:
    """Check that what was found is what was used and what was left out.

    Raises
    ------
    RuntimeError
        It is not.
    """
    for what, found, used, left_out in _sums(account):
        if found != used + left_out:
            raise RuntimeError(f"{found} {what} found, but {used} used and {left_out} left out")


def _sums(account: Accounting) -> Iterator[tuple[str, int, int, int]]:
    yield "recordings", account.recordings_found, account.recordings_used, len(account.recordings_left_out)
    people = sum(len(names) for names in account.people_left_out.values())
    yield "people", account.people_found, account.people_used, people
