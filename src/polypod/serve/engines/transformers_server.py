"""The process of a Transformers replica: our server over its `generate`.

A seed gives the same answer again while the request runs alone; the library has one random generator for all sequences.
"""

import asyncio
from collections.abc import Sequence

from polypod.serve.engines.application import Application, serve
from polypod.serve.engines.child import ChildOptions, check_weights, settle
from polypod.serve.engines.transformers_generate import Batch


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until a signal ends the process."""
    options = settle(argv)
    if options.weights.is_file():
        check_weights(options.weights)
    asyncio.run(_serve(options))


async def _serve(options: ChildOptions) -> None:
    batch = Batch(options, asyncio.get_running_loop())
    batch.warm_up()
    await serve(options, Application("transformers", options, batch), batch.run())


if __name__ == "__main__":
    main()
