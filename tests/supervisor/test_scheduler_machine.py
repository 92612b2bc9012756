"""Any sequence of events: the ledger never promises more than there is, nobody is forgotten."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.supervisor.world import MB, PROCESS, World, need
from uml.protocol.errors import WorkerDied
from uml.supervisor.states import Need, State

MODELS = st.sampled_from("abcd")
#: States in which a worker has its model's memory, or may have.
RESIDENT = (State.LOADING, State.READY, State.DRAINING, State.KILLING)


class SchedulerMachine(RuleBasedStateMachine):
    """Workers answer in any order, fail at any moment, and memory comes back late or not."""

    def __init__(self) -> None:
        super().__init__()
        self.world = self.make()
        self.requests = 0
        self.open: set[int] = set()
        self.left: set[int] = set()

    def make(self) -> World:
        return World(max_wait_s=4.0, standby={"b": {"ram": PROCESS}})

    def wanted(self, model: str, ctx: int) -> Need:
        size = {"a": 300, "b": 500, "c": 700, "d": 950}[model] * MB
        return need(model, size, n_ctx=ctx, keep_alive_s=20.0)

    def pick(self, *states: State) -> list[str]:
        return [w.id for w in self.world.scheduler.workers.values() if w.state in states]

    def running(self) -> list[int]:
        return sorted(r for w in self.world.scheduler.workers.values() for r in w.busy)

    @rule(model=MODELS, urgent=st.booleans(), ctx=st.sampled_from([0, 0, 4096]))
    def ask(self, model: str, urgent: bool, ctx: int) -> None:
        self.requests += 1
        self.open.add(self.requests)
        self.world.ask(self.requests, self.wanted(model, ctx), urgent=urgent)

    @rule(data=st.data())
    @precondition(lambda self: self.running())
    def finish(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.running()))
        self.open.discard(request)
        self.left.add(request)
        self.world.finish(request)

    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        done = self.world.granted.keys() | self.world.refused.keys()
        waiting = sorted(self.open - done)
        if waiting:
            request = data.draw(st.sampled_from(waiting))
            self.open.discard(request)
            self.left.add(request)
            self.world.do(self.world.scheduler.on_abandoned(request, self.world.clock))

    @rule(data=st.data())
    def hello(self, data: st.DataObject) -> None:
        if found := self.pick(State.STARTING):
            self.world.hello(data.draw(st.sampled_from(found)))

    @rule(data=st.data())
    def ready(self, data: st.DataObject) -> None:
        if found := self.pick(State.LOADING):
            self.world.ready(data.draw(st.sampled_from(found)))

    @rule(data=st.data(), died=st.booleans(), again=st.booleans())
    def die(self, data: st.DataObject, died: bool, again: bool) -> None:
        if found := self.pick(*(s for s in State if s is not State.KILLING)):
            worker = data.draw(st.sampled_from(found))
            busy = set(self.world.scheduler.workers[worker].busy)
            model = self.world.scheduler.workers[worker].need
            error = WorkerDied("died")
            now = self.world.clock
            self.world.do(self.world.scheduler.on_failed(worker, error, now, died=died))
            for request in busy:
                self.open.discard(request)
                self.left.add(request)
                self.world.finish(request)
                if again:
                    self.requests += 1
                    self.open.add(self.requests)
                    self.world.ask(self.requests, model, rerun_since=max(0.0, now - 3.0))

    @rule(data=st.data(), residue=st.sampled_from([0, 0, 0, 100 * MB]))
    def gone(self, data: st.DataObject, residue: int) -> None:
        if found := self.pick(State.KILLING):
            worker = data.draw(st.sampled_from(found))
            for request in list(self.world.scheduler.workers[worker].busy):
                self.open.discard(request)
                self.left.add(request)
                self.world.finish(request)
            held = self.world.resident.get(worker, {})
            self.world.gone(worker, min(residue, held.get("ram", 0)))

    @rule()
    def residue_goes(self) -> None:
        for holder, lease in list(self.world.scheduler.budget.leases.items()):
            if lease.residue:
                self.world.residue_goes(holder)

    @rule(seconds=st.sampled_from([0.5, 5.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    @rule(model=MODELS, force=st.booleans())
    def unload(self, model: str, force: bool) -> None:
        self.world.do(self.world.scheduler.on_unload(model, self.world.clock, force=force))

    @rule(model=MODELS, force=st.booleans())
    def make_way(self, model: str, force: bool) -> None:
        self.world.do(self.world.scheduler.on_make_way(model, self.world.clock, force=force))

    @rule(size=st.sampled_from([0, 200 * MB]))
    def others_take(self, size: int) -> None:
        self.world.foreign = min(size, self.world.foreign + max(0, self.world.free()))
        self.world.measure()

    def teardown(self) -> None:
        """Once everything that is under way has come to its end, nobody waits any more."""
        world, scheduler = self.world, self.world.scheduler
        world.foreign = 0
        for _ in range(200):
            for holder, lease in list(scheduler.budget.leases.items()):
                if lease.residue:
                    world.residue_goes(holder)
            for worker in list(scheduler.workers.values()):
                for request in sorted(worker.busy):
                    world.finish(request)
                if worker.state is State.KILLING:
                    world.gone(worker.id)
                elif worker.state is State.STARTING:
                    world.hello(worker.id)
                elif worker.state is State.LOADING:
                    world.ready(worker.id)
            world.wait(0.5)
            if not any(scheduler.waiting().values()):
                return
        raise AssertionError(f"{scheduler.waiting()} wait for ever")

    @invariant()
    def leases_never_exceed_the_machine(self) -> None:
        world, budget = self.world, self.world.scheduler.budget
        for device, total in world.totals.items():
            held = [lease.bytes.get(device, 0) for lease in budget.leases.values()]
            assert sum(held) == budget.leased(device) <= total
            assert world.used(device) <= total

    @invariant()
    def what_a_worker_occupies_was_promised_to_it(self) -> None:
        for worker, held in self.world.resident.items():
            lease = self.world.scheduler.budget.leases[worker]
            assert all(count <= lease.bytes.get(device, 0) for device, count in held.items())

    @invariant()
    def who_computes_has_cores_and_who_is_idle_has_none(self) -> None:
        cores, workers = self.world.scheduler.limits.cores, self.world.scheduler.workers.values()
        for worker in workers:
            computes = worker.state is State.LOADING or (
                worker.busy and worker.state in (State.READY, State.DRAINING)
            )
            assert bool(worker.cores) == bool(computes and cores)
            assert not worker.cores or self.world.threads[worker.id] == worker.cores
        held = [w.cores for w in workers if w.cores]
        assert sum(held) <= max(cores or 0, len(held))

    @invariant()
    def every_lease_has_a_worker_or_is_residue(self) -> None:
        for holder, lease in self.world.scheduler.budget.leases.items():
            assert lease.residue or holder in self.world.scheduler.workers

    @invariant()
    def every_worker_has_a_lease(self) -> None:
        for worker in self.world.scheduler.workers:
            assert worker in self.world.scheduler.budget.leases

    @invariant()
    def a_suspect_has_its_worker_to_itself(self) -> None:
        for worker in self.world.scheduler.workers.values():
            assert worker.alone is None or worker.busy == {worker.alone}

    @invariant()
    def no_model_has_two_workers(self) -> None:
        workers = self.world.scheduler.workers.values()
        models = [w.model for w in workers if w.need and w.state is not State.KILLING]
        assert len(models) == len(set(models))

    @invariant()
    def every_request_is_answered_or_still_known(self) -> None:
        scheduler = self.world.scheduler
        waiting = {r for model in scheduler.waiting() for r in scheduler.line(model)}
        answered = self.world.granted.keys() | self.world.refused.keys()
        assert self.open <= waiting | answered

    @invariant()
    def a_waiting_model_waits_for_something(self) -> None:
        """Somebody waits only while an event is due that can help him."""
        scheduler, world = self.world.scheduler, self.world
        for model, count in scheduler.waiting().items():
            due = any(
                w.state in (State.STARTING, State.LOADING, State.KILLING) or w.busy
                for w in scheduler.workers.values()
            )
            assert not count or due or world.timers, f"{model} waits for nothing"


class CrowdedMachine(SchedulerMachine):
    """Two devices beside RAM, few cores, a group, a conflict, priorities and a pinned model."""

    def make(self) -> World:
        devices = {"g0": 100 * MB, "g1": 100 * MB}
        return World(total=600 * MB, others=devices, cores=2, max_wait_s=4.0)

    def wanted(self, model: str, ctx: int) -> Need:
        on: dict[str, tuple[dict[str, int], tuple[str, ...]]] = {
            "a": ({"ram": 60 * MB, "g0": 60 * MB}, ("place:group|x",)),
            "b": ({"ram": 60 * MB, "g0": 30 * MB, "g1": 70 * MB}, ("place:group|x", "place:b|c")),
            "c": ({"ram": 400 * MB}, ("place:b|c",)),
            "d": ({"ram": 60 * MB, "g1": 60 * MB}, ()),
        }
        size, places = on[model]
        return need(
            model,
            size,
            n_ctx=ctx,
            keep_alive_s=20.0,
            places=places,
            pinned=model == "d",
            priority=2 * (model == "c"),
            cores=1 if model == "a" else None,
        )

    @invariant()
    def no_place_is_taken_twice(self) -> None:
        budget = self.world.scheduler.budget
        for place in ("place:group|x", "place:b|c"):
            assert budget.leased(place) == len(budget.holders(place)) <= 1

    @invariant()
    def pinned_models_leave_for_nobody(self) -> None:
        for worker, reason in self.world.killed:
            assert not (reason.startswith("evicted") and self.world.model_of[worker] == "d")


class SingleMachine(SchedulerMachine):
    """`max_loaded` = 1 with memory for all: two models are never resident together."""

    def make(self) -> World:
        return World(
            total=100_000 * MB, max_loaded=1, max_wait_s=4.0, standby_auto=True, spare_s=30.0
        )

    @invariant()
    def never_two_resident(self) -> None:
        workers = self.world.scheduler.workers.values()
        assert sum(w.leased and w.state in RESIDENT for w in workers) <= 1


TestSchedulerMachine = SchedulerMachine.TestCase
TestCrowdedMachine = CrowdedMachine.TestCase
TestSingleMachine = SingleMachine.TestCase
for _case in (TestSchedulerMachine, TestCrowdedMachine, TestSingleMachine):
    _case.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
del _case  # or it would be collected, too
