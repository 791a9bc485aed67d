"""What earlier runs take is said once it is much, with where it is."""

from polypod.serve.kept_runs import kept_runs, said_of_runs


def test_runs_are_counted_with_the_bytes_of_their_files(tmp_path):
    assert kept_runs(tmp_path) == (0, 0)
    for number in range(3):
        folder = tmp_path / "runs" / f"run-{number}"
        folder.mkdir(parents=True)
        (folder / "record.jsonl").write_bytes(b"x" * 1000)

    assert kept_runs(tmp_path) == (3, 3000)
    assert said_of_runs(tmp_path) == ""
    said = said_of_runs(tmp_path, worth_bytes=3000)
    assert "3 earlier runs take 3 kB" in said
    assert str(tmp_path / "runs") in said
