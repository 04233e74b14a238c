"""Every attack succeeds when its guard is taken away, and fails with it."""

import subprocess
import sys

import pytest

from secfl.crypto.aggregation import Envelope
from secfl.crypto.ckks import Ckks
from secfl.crypto.masking import Masking
from secfl.crypto.plain import Plain
from secfl.crypto.wire import AGGREGATOR_INDEX, MessageType, frame
from secfl.errors import ConfigError
from secfl.guarantees import Adversary, Behaviour, View, Visibility
from secfl.randomness import InsecureSeededRng
from secfl.testing.adversaries import every_attack
from secfl.testing.adversaries.attacks import Guard
from secfl.testing.adversaries.broken_masking import BrokenMasking, ObligingClient
from secfl.testing.adversaries.forging import Repair, reseal
from secfl.testing.adversaries.on_masking import ask_for_both_secrets, attacker_on
from secfl.testing.stage import Cast
from secfl.types import AGGREGATOR, SchemeSpec

ATTACKS = {attack.name: attack for attack in every_attack()}

REFUSED = (
    "both shares of one client",
    "two survivor sets",
    "two U2 sets",
    "an unmask or consistency request repeated with other content",
    "repeated for another round",
    "after a restore from an older snapshot",
    "a replaced public key",
    "a client's own minimum cohort not met",
    "t < 3",
    "2t <= n",
    "two vectors under one mask label",
    "a retry that reuses masks",
    "reuses noise",
    "different models",
    "same model with another task",
    "a ciphertext of other parameters or length",
    "a residue >= q",
    "a replayed or copied input of another client",
    "under sum-key a copy does not decrypt",
    "in shared mode a chosen ciphertext",
    "a single client's ciphertext offered as the sum",
    "wrong Shamir share",
    "wrong KEM ciphertext",
    "wrong escrow",
    "NaN",
    "re-signed",
)
"""docs/protocol.md, section 5."""


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_succeeds_without_its_guard(name):
    outcome = ATTACKS[name].play(Guard.REMOVED)
    assert outcome.success, outcome.refusal


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_fails_with_its_guard(name):
    outcome = ATTACKS[name].play(Guard.IN_PLACE)
    assert not outcome.success
    assert outcome.refusal


@pytest.mark.parametrize("line", REFUSED)
def test_every_line_of_the_protocol_has_an_attacker(line):
    assert [attack.name for attack in ATTACKS.values() if line in attack.line]


@pytest.mark.parametrize("line", REFUSED)
def test_the_lines_are_those_of_the_protocol_page(project, line):
    page = " ".join((project / "docs" / "protocol.md").read_text(encoding="utf-8").split())
    assert line in page.partition("## 5 What is refused")[2].partition("## 6")[0]


def test_the_names_are_distinct():
    assert len(ATTACKS) == len(every_attack())


@pytest.mark.parametrize("kind", MessageType)
@pytest.mark.parametrize("sender", ["c00", AGGREGATOR])
def test_messages_can_be_signed_again_whatever_type_damage_gave_them(kind, sender):
    """In a round of plain with one client, which no other scheme allows."""
    cast = Cast.make(Plain(threads=1), SchemeSpec(name="plain"), clients=1, threshold=1)
    payload = frame(
        kind, digest=cast.spec.digest(), sender=AGGREGATOR_INDEX if sender == AGGREGATOR else 0
    ) + bytes(5000)
    envelope = Envelope(sender, AGGREGATOR if sender == "c00" else "c00", payload)
    for repair in Repair:
        assert len(reseal(cast, envelope, repair).payload) == len(payload)


class TestCollusion:
    """The guarantee's number of colluders is what the attacker needs, and not one fewer."""

    @pytest.mark.parametrize(("clients", "threshold"), [(5, 3), (5, 4), (6, 4)])
    def test_two_survivor_sets_need_one_colluder_more_than_the_guarantee_allows(self, clients, threshold):
        said = Masking().guarantee(
            Cast.make(Masking(), SchemeSpec(name="masking"), clients=clients, threshold=threshold).spec,
            survivors=clients,
        )
        for colluders in range(threshold):
            succeeded = self.split(clients, threshold, colluders)
            assert succeeded == (colluders > said.malicious_colluders), (colluders, said.malicious_colluders)
            adversary = Adversary(
                view=View.AGGREGATOR_COLLUDERS, behaviour=Behaviour.MALICIOUS, colluders=colluders
            )
            assert (said.visibility(adversary) is Visibility.EVERY_UPDATE) == succeeded

    @staticmethod
    def split(clients, threshold, colluders):
        """The strategy of the bound: colluders confirm two sets of survivors and answer twice, the honest are split.

        The colluders' own inputs are known to the attacker, so they may be among any survivors.
        """
        attacker = attacker_on(Masking(threads=1), clients=clients, threshold=threshold)
        names = attacker.cast.cohort
        bad = list(range(clients - colluders, clients))
        obliging = Cast.make(
            BrokenMasking(client_class=ObligingClient),
            SchemeSpec(name="masking"),
            clients=clients,
            threshold=threshold,
        )
        for index in bad:
            attacker.clients[names[index]] = obliging.client(names[index], InsecureSeededRng(index))
        attacker.collect_inputs()
        honest = [index for index in range(clients) if index not in bad]
        victim = honest[0]
        need = threshold - colluders
        first, second = honest[:need], honest[need : 2 * need]
        if len(second) < need or victim in second:
            second = honest[-need:] if need else []
        for group in (first, second):
            survivors = sorted({*group, *bad})
            for index in survivors:
                attacker.show_survivors(index, survivors)
            for index in survivors:
                attacker.show_signers(index, survivors)
        opened = attacker.open_inputs([victim])
        return opened is not None

    def test_both_secrets_need_every_one_of_a_threshold(self):
        """One honest client among the others that are asked is enough to refuse, at n = 4 and t = 3."""
        attacker = attacker_on(BrokenMasking(client_class=ObligingClient))
        honest = attacker_on(Masking(threads=1))
        name = attacker.cast.cohort[1]
        attacker.clients[name] = honest.clients[name]
        attacker.collect_inputs()
        assert not ask_for_both_secrets(attacker).success


class TestWhatTheLedgerSays:
    def test_a_shared_key_and_one_colluder_is_said_to_see_everything(self):
        spec = SchemeSpec(name="ckks", parameters=(("key_mode", "shared"),))
        cast = Cast.make(Ckks(threads=1), spec)
        said = cast.scheme.guarantee(cast.spec, survivors=3)
        assert said.curious_colluders == 0
        assert said.malicious_colluders == -1
        assert said.client_with_network is Visibility.EVERY_UPDATE

    def test_a_round_of_another_key_mode_is_another_round(self):
        shared = SchemeSpec(name="ckks", parameters=(("key_mode", "shared"),))
        other = SchemeSpec(name="ckks", parameters=(("key_mode", "sum-key"),))
        one = Cast.make(Ckks(threads=1), shared)
        assert one.spec.digest() != Cast.make(Ckks(threads=1), other).spec.digest()
        with pytest.raises(ConfigError):
            Cast.make(Ckks(), SchemeSpec(name="ckks", parameters=(("key_mode", "joint"),))).aggregator()


@pytest.mark.slow
def test_the_command_prints_every_attack():
    done = subprocess.run(
        [sys.executable, "-m", "secfl.testing.adversaries"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ATTACKS)} attacks, 0 surprises" in done.stdout
    assert "the guarantee says: every_update" in done.stdout
