"""The command line: `elbotree VERB`. The verbs are in `elbotree.verbs`; here are their order and their exit statuses.

Exit status: 0 done, 1 a user's mistake (one line on standard error), 2 wrong usage, 3 a tolerance was not met, 130 interrupted.
With `--format json` standard output carries JSON alone; progress goes to standard error, and only on a terminal.
"""

from __future__ import annotations

from typing import Any

import click

from elbotree.verbs.laws import sample, tail
from elbotree.verbs.learning import evaluate, fit
from elbotree.verbs.networks import compile_
from elbotree.verbs.pages import completion, doctor, example, report
from elbotree.verbs.proof import derive, kernels
from elbotree.verbs.screen import Interrupted, Missed, Mistake


class _Verbs(click.Group):
    """A group that lists its verbs in the order of use and turns elbotree's exceptions into exit statuses."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            from elbotree.runtime.errors import abridged

            raise click.UsageError(abridged(error.format_message()), error.ctx) from error
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt as error:
            raise Interrupted from error
        except MemoryError as error:
            raise Mistake(
                "out of memory: give a larger tol, a smaller problem, or --max-memory to be told before"
            ) from error
        except OSError as error:
            from elbotree.runtime.errors import abridged

            place = f"{error.filename}: " if error.filename else ""
            raise Mistake(abridged(f"{place}{error.strerror or error}")) from error
        except Exception as error:
            from elbotree.runtime.errors import ElbotreeError, ToleranceError

            if not isinstance(error, ElbotreeError):
                raise
            raise (Missed if isinstance(error, ToleranceError) else Mistake)(str(error)) from error


_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=_Verbs, context_settings=_CONTEXT)
@click.version_option(package_name="elbotree", message="%(prog)s %(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Tell on standard error what long work is doing.")
def main(verbose: bool) -> None:
    """Learn variational auto-encoders for a network's activations, without sampling.

    \b
    elbotree example > problem.json                    a small problem to try the verbs on
    elbotree derive                                    print the derived loss as a tree
    elbotree kernels --psi relu --family bernoulli     print numpy kernels made from it
    elbotree evaluate problem.json --tol 1e-8          its twelve terms, each with an error
    """
    if verbose:
        import logging

        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
        logging.getLogger("elbotree").setLevel(logging.INFO)


for verb in (derive, kernels, evaluate, fit, sample, tail, compile_, report, doctor, example, completion):
    main.add_command(verb)

if __name__ == "__main__":
    main()
