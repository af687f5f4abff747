"""Whose turn it is, told by a clock that the tests turn."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from esm_agent.serving.lease import MOST_LEASES, Leases, NoLeaseError, TooManyError

EXPIRY_S = 30.0


def renew(leases: Leases, lease_id: str, now: float = 0.0, **kwargs):
    given = {"owner": lease_id, "purpose": "test", "client": "token", "wait": True}
    return leases.renew(lease_id, **{**given, **kwargs}, now=now)


def test_the_first_holds_and_others_see_who_and_how_long() -> None:
    leases = Leases(EXPIRY_S)
    assert renew(leases, "a").ahead == 0
    leases.begin({"a"}, now=0.0)
    leases.end("a", now=8.0)
    leases.begin({"a"}, now=8.0)
    renew(leases, "b", now=9.0)
    third = renew(leases, "c", now=10.0)
    assert (third.ahead, third.wait_s) == (2, pytest.approx(2 * 8 - 2))
    assert third.holder is not None
    assert (third.holder.owner, third.holder.purpose, third.holder.held_s) == ("a", "test", 10.0)
    occupancy = leases.occupancy(now=10.0)
    assert (occupancy.holder, occupancy.waiting) == (third.holder, 2)


def test_turns_go_round_among_those_who_have_blocks() -> None:
    leases = Leases(EXPIRY_S)
    for name in "abc":
        renew(leases, name)
    turns = []
    for _ in range(6):
        turn = leases.begin({"a", "c"}, now=0.0)
        assert turn is not None
        turns.append(turn)
        leases.end(turn, now=1.0)
    assert turns == ["a", "c"] * 3


def test_turns_go_round_clients_and_then_round_their_leases() -> None:
    """Nine leases of one client are as good as one."""
    leases = Leases(EXPIRY_S)
    names = [f"greedy {number}" for number in range(9)]
    for name in names:
        renew(leases, name, client="greedy")
    renew(leases, "modest", client="modest")
    assert renew(leases, "third", client="third").ahead == 2
    assert leases.standing("greedy 8", 0.0).ahead == 10
    ready = {*names, "modest", "third"}
    turns = []
    for _ in range(27):
        turn = leases.begin(ready, now=0.0)
        assert turn is not None
        turns.append(turn)
        leases.end(turn, now=1.0)
    assert turns[0::3] == names
    assert turns[1::3] == ["modest"] * 9
    assert turns[2::3] == ["third"] * 9


def test_who_gives_a_lease_back_during_its_turn_has_had_its_turn() -> None:
    leases = Leases(EXPIRY_S)
    for name in ("greedy 1", "greedy 2", "modest"):
        renew(leases, name, client=name.split()[0])
    assert leases.begin({"greedy 1", "modest"}, now=0.0) == "greedy 1"
    leases.release("greedy 1", "greedy")
    leases.end("greedy 1", now=1.0)
    assert leases.begin({"greedy 2", "modest"}, now=1.0) == "modest"


def test_a_client_has_so_many_leases_and_no_more() -> None:
    leases = Leases(EXPIRY_S)
    for number in range(MOST_LEASES):
        renew(leases, str(number), client="greedy")
    with pytest.raises(TooManyError, match="release some"):
        renew(leases, "one more", client="greedy")
    renew(leases, "mine", client="modest")
    assert leases.end_all("greedy") == [str(number) for number in range(MOST_LEASES)]
    assert leases.clients() == ["modest"]


def test_a_silent_lease_expires_and_a_renewed_one_does_not() -> None:
    leases = Leases(EXPIRY_S)
    renew(leases, "a", now=0.0)
    renew(leases, "b", now=0.0)
    renew(leases, "b", now=20.0)
    assert leases.expire(now=29.9) == []
    assert leases.expire(now=30.0) == ["a"]
    assert leases.standing("b", now=30.0).ahead == 0
    assert renew(leases, "a", now=31.0).ahead == 1, "who comes back queues again"


def test_nobody_waits_who_does_not_want_to() -> None:
    leases = Leases(EXPIRY_S)
    assert renew(leases, "a", wait=False).ahead == 0
    refused = renew(leases, "b", wait=False)
    assert refused.ahead == 1
    assert refused.holder is not None
    assert leases.occupancy(0.0).waiting == 0, "no lease was made"
    with pytest.raises(NoLeaseError):
        leases.check("b", "token")


def test_a_lease_is_its_clients_alone() -> None:
    leases = Leases(EXPIRY_S)
    renew(leases, "a", client="ada")
    with pytest.raises(NoLeaseError):
        leases.check("a", "eve")
    with pytest.raises(NoLeaseError):
        renew(leases, "a", client="eve")
    assert not leases.release("a", "eve")
    leases.check("a", "ada")
    assert leases.release("a", "ada")
    assert not leases.release("a", "ada"), "twice does no harm"


CLIENT_OF = {"a": "ada", "b": "ada", "c": "bob", "d": "cy"}


class AnyOrder(RuleBasedStateMachine):
    """Hosts come, measure, die and return in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.leases = Leases(EXPIRY_S)
        self.now = 0.0
        self.alive: dict[str, float] = {}
        self.running: str | None = None

    @rule(name=st.sampled_from("abcd"))
    def renew(self, name: str) -> None:
        self.leases.expire(self.now)
        self.alive = {n: t for n, t in self.alive.items() if t > self.now}
        renew(self.leases, name, self.now, client=CLIENT_OF[name])
        self.alive[name] = self.now + EXPIRY_S

    @rule(name=st.sampled_from("abcd"))
    def release(self, name: str) -> None:
        assert self.leases.release(name, CLIENT_OF[name]) == (name in self.alive)
        self.alive.pop(name, None)

    @rule(seconds=st.floats(0, 40))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        gone = set(self.leases.expire(self.now))
        assert gone == {n for n, expires in self.alive.items() if expires <= self.now}
        self.alive = {n: t for n, t in self.alive.items() if n not in gone}

    @precondition(lambda self: self.running is None)
    @rule(ready=st.sets(st.sampled_from("abcd")))
    def begin(self, ready: set[str]) -> None:
        self.running = self.leases.begin(ready, self.now)
        assert (self.running is None) == (not ready & self.alive.keys())

    @precondition(lambda self: self.running is not None)
    @rule()
    def end(self) -> None:
        assert self.running is not None
        self.leases.end(self.running, self.now)
        self.running = None

    @invariant()
    def everybody_alive_has_one_place(self) -> None:
        standings = dict(self.leases.standings(self.now))
        assert standings == {name: self.leases.standing(name, self.now) for name in self.alive}
        places = sorted(self.leases.standing(name, self.now).ahead for name in self.alive)
        assert places == list(range(len(self.alive)))
        assert self.leases.occupancy(self.now).waiting == max(len(self.alive) - 1, 0)


TestAnyOrder = AnyOrder.TestCase
