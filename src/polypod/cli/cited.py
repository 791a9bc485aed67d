"""Sources numbered as they are cited, and paragraphs that keep their addresses whole."""

from dataclasses import dataclass, field
from textwrap import wrap

from polypod.report.tables import WIDTH


@dataclass(slots=True)
class Sources:
    """Numbers sources in the order they are cited."""

    cited: list[str] = field(default_factory=list)

    def mark(self, source: str) -> str:
        if source not in self.cited:
            self.cited.append(source)
        return f"[{self.cited.index(source) + 1}]"

    def lines(self) -> list[str]:
        return ["", *(hanging(f"[{n}]", source) for n, source in enumerate(self.cited, start=1))]


def hanging(label: str, text: str) -> str:
    """A labelled paragraph in which addresses stay whole, so that they can be copied."""
    lines = wrap(text, WIDTH - 5, break_long_words=False, break_on_hyphens=False)
    return f"{label:<5}" + "\n     ".join(lines)
