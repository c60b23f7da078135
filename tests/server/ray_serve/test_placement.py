"""Where requests go: together what begins alike, the same from every ingress, never far beyond the idlest."""

from hypothesis import given
from hypothesis import strategies as st

from distaff.server.dispatch.routing import LEAD
from distaff.server.ray_serve.call import RoutingKey
from distaff.server.ray_serve.placement import Placement

IDS = ("a", "b", "c", "d")
loads = st.dictionaries(st.sampled_from(IDS), st.integers(0, 8).map(lambda n: n / 8), min_size=1)
names = st.binary(min_size=1, max_size=3)


def key(*blocks: bytes, home: bytes = b"h", session: str = "") -> RoutingKey:
    return RoutingKey(blocks, session, home)


@given(loads, names, st.sets(st.sampled_from(IDS)))
def test_the_order_has_every_replica_and_begins_with_one_that_may_be_chosen(loads, home, avoid):
    order = Placement().order(key(home=home), loads, avoid)
    assert sorted(order) == sorted(loads)
    allowed = loads.keys() - avoid or loads.keys()
    assert order[0] in allowed
    assert loads[order[0]] <= min(loads[id] for id in allowed) + LEAD
    rest = [(id in avoid, loads[id]) for id in order[1:]]
    assert rest == sorted(rest)


@given(names)
def test_ingresses_that_know_nothing_of_each_other_agree(home):
    idle = dict.fromkeys(IDS, 0.0)
    one, other = Placement(), Placement()
    other.remember("d", key(b"another"))
    assert one.order(key(home=home), idle)[0] == other.order(key(home=home), dict(reversed(idle.items())))[0]


def test_conversations_spread_over_the_replicas():
    idle = dict.fromkeys(IDS, 0.0)
    first = [Placement().order(key(home=b"%d" % n), idle)[0] for n in range(200)]
    assert all(30 <= first.count(id) for id in IDS)


@given(names, st.sampled_from(IDS))
def test_a_conversation_stays_where_it_was_until_that_is_busier(home, place):
    placement, idle = Placement(), dict.fromkeys(IDS, 0.0)
    placement.remember(place, key(b"1", b"2", home=home))
    assert placement.order(key(b"1", b"2", b"3", home=home), idle)[0] == place
    assert placement.order(key(b"1", b"2", b"3", home=home), idle | {place: LEAD + 0.1})[0] != place


def test_a_session_goes_where_it_was_last():
    placement, idle = Placement(), dict.fromkeys(IDS, 0.0)
    for id in IDS:
        placement.remember(id, key(session="s"))
        assert placement.order(key(b"1", session="s"), idle)[0] == id


@given(st.lists(st.sets(st.sampled_from(IDS), min_size=1), max_size=6), names)
def test_replicas_that_are_gone_are_forgotten_and_their_numbers_used_again(story, home):
    placement = Placement()
    for ids in story:
        placement.keep(ids)
        for id in ids:
            placement.remember(id, key(b"1", home=home, session=id))
        assert placement.order(key(b"1", home=home, session=min(ids)), dict.fromkeys(ids, 0.0))[0] == min(ids)
    placement.keep([])
    placement.remember("new", key(b"2"))
    unknown = placement.order(key(b"1", home=home), {"new": 0.0, "z": 0.0})
    assert unknown == Placement().order(key(b"1", home=home), {"new": 0.0, "z": 0.0})
