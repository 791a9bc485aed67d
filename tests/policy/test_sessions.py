"""A conversation goes back to where it was, unless that would take much longer."""


def test_a_session_goes_back_to_its_replica(new_node):
    node = new_node()
    node.up("a")
    node.arrive(1, session=7)
    node.finish(1)
    for name in "bcdefgh":
        node.up(name)
    for request in range(2, 10):
        node.arrive(request, session=7)
        assert node.where(request) == "a"
        node.finish(request)


def test_one_without_a_session_goes_anywhere(new_node):
    node = new_node()
    for name in "abcdefgh":
        node.up(name)
    where = set()
    for request in range(1, 30):
        node.arrive(request)
        where.add(node.where(request))
        node.finish(request)

    assert len(where) > 3


def test_it_leaves_one_that_has_become_much_slower_than_the_others(new_node):
    node = new_node()
    node.up("a", max_sequences=50)
    node.arrive(1, session=7)
    for request in range(2, 40):
        node.arrive(request, input_tokens=3000, only_replica="a")
    node.up("b")
    node.arrive(50, session=7)

    assert node.where(50) == "b"


def test_it_stays_within_what_it_may_lose_by_that(new_node):
    for fraction, where in ((0.5, "a"), (0.0, "b")):
        node = new_node(session_stay_fraction=fraction)
        node.up("a")
        node.arrive(1, session=7)
        node.arrive(2, only_replica="a")
        node.up("b")
        node.arrive(3, session=7)

        assert node.where(3) == where, fraction


def test_it_is_not_held_to_one_that_is_full_or_down_or_left_alone(new_node):
    for trouble in ("full", "down", "busy"):
        node = new_node()
        node.up("a", max_sequences=2)
        node.arrive(1, session=7)
        node.up("b")
        if trouble == "full":
            node.arrive(2, only_replica="a")
        elif trouble == "down":
            node.finish(1)
            node.down("a")
        else:
            node.busy(1)
        node.arrive(3, session=7)

        assert node.where(3) == "b", trouble
