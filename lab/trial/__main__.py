"""`python3 -m lab trial`: draw, measure, write the page. An interrupted trial goes on where it stopped."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from lab.host import HOME, say
from lab.trial.plan import parse


def main(argv: Sequence[str]) -> int:
    try:
        plan, page = parse(argv)
        from lab.client import ComfyError  # after --help, which needs no environment

        try:
            from dreamtuner_core.files import write_whole
            from lab.trial.page import written
            from lab.trial.studio import Studio

            record = Studio(plan, HOME / "trials" / plan.key).run()
        except ComfyError as error:
            say(f"the trial stopped: {error}")
            return 1
        page.out.parent.mkdir(parents=True, exist_ok=True)
        text = written(plan, page, record)
        write_whole(page.out, lambda path: path.write_text(text, encoding="utf-8"))
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            say("the trial stopped because the disk is full; make room and run the same line again, it goes on.")
        else:
            say(f"the trial cannot run: {error}")
        return 1
    print(page.out)
    return 0
