"""Examples that cannot be used: the first ends the run, or a given number of them is skipped, counted and listed."""

import dataclasses

from input_pipeline.common.errors import UnusableError


@dataclasses.dataclass
class BadExamples:
    """What a source has met that cannot be used, each thing once however often it is read.

    Attributes:
      limit: how many are skipped before the run stops; --max_bad_examples.
      found: {where: why}, where being a file, with its row or record where it has several.
    """

    limit: int = 0
    found: dict = dataclasses.field(default_factory=dict)

    def add(self, where, why, remedy):
        """Notes one bad example.

        Args:
          where: the file, and the row or record in it.
          why: what is wrong with it, such as "is truncated".
          remedy: what to do about it.

        Raises:
          UnusableError: it is one more than `limit`; the line names it.
        """
        self.found.setdefault(where, why)
        if len(self.found) > self.limit:
            count = len(self.found)
            which = f" (--max_bad_examples={self.limit}, this is number {count})" if self.limit else ""
            tolerate = f"a larger --max_bad_examples than {self.limit}" if self.limit else "--max_bad_examples=N"
            raise UnusableError(f"{where}: {why}{which}; {remedy}, or give {tolerate} to skip such examples")

    def lines(self):
        """One line for each that was skipped, for a text file."""
        return [f"{where}: {why}" for where, why in list(self.found.items())[: self.limit]]
