"""A node may open as many files as its hard limit allows, and says where that is too few for its plan."""

import json
import subprocess
import sys

SCRIPT = """
import json, resource
from polypod.serve.descriptors import raise_limit, shortage, streams_within
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 2000))
limit = raise_limit()
most = streams_within(limit, 3)
print(json.dumps([limit, resource.getrlimit(resource.RLIMIT_NOFILE), most, shortage(limit, 3, most), shortage(limit, 3, most + 1)]))
"""


def test_the_limit_is_raised_to_the_hard_one_and_what_is_too_few_is_said():
    out = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True).stdout
    limit, now, most, enough, short = json.loads(out)

    assert (limit, now) == (2000, [2000, 2000])
    assert most == (2000 - 64 - 3 * 6 - 64) // 2
    assert enough == ""
    assert f"enough for {most:,} streams at once" in short
    assert "raise the hard limit to 2,002" in short
