"""The operator replaces its own keys while the coordinator is served; owners go on, before and after the restart."""

from __future__ import annotations

from pathlib import Path

from common.rpc.v1 import elmgrove_pb2 as pb
from tests.support.coordinator_world import Served, push


def test_owners_go_on_over_a_rotation_of_the_coordinators_own_keys(tmp_path: Path) -> None:
    served = Served.found(tmp_path)
    anchor = served.publish(tmp_path / "checkpoint")
    with served.running():
        anna = served.join("anna")
        served.run("keys", "rotate", "both")
        ben = served.join("ben")  # admitted with the new operator key by the process that was started before
    served.run("keys", "renew")
    with served.running():
        for member, name in ((anna, "tides"), (ben, "moss")):
            with served.connect(member) as connection:
                push(connection, member.package(tmp_path / name, anchor, name=name))
                status = connection.call(connection.consortium.Status, pb.StatusRequest())
                assert [expert.status for expert in status.experts] == ["in-force"]
    assert "It holds." in served.run("fsck")
