"""The process of an OpenVINO replica: our server over its continuous batching.

A seed gives the same answer again while the request runs alone; the library has one random generator for all sequences.
"""

import asyncio
from collections.abc import Sequence

from polypod.serve.engines.application import Application, serve
from polypod.serve.engines.child import ChildOptions, check_weights, settle
from polypod.serve.engines.openvino_batch import Batch


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until a signal ends the process."""
    options = settle(argv)
    check_weights(options.weights)
    asyncio.run(_serve(options))


async def _serve(options: ChildOptions) -> None:
    batch = Batch(options)
    batch.warm_up()
    await serve(options, Application("openvino", options, batch), batch.run())


if __name__ == "__main__":
    main()
