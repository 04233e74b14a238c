"""Every scheme of secfl passes the shipped suite."""

from dataclasses import replace

import numpy as np
import pytest

from secfl.crypto.ckks import Ckks
from secfl.crypto.masking import Masking
from secfl.crypto.plain import Plain
from secfl.crypto.wire import MessageType
from secfl.errors import RemoteProtocolError
from secfl.testing.adversaries.forging import Repair, reseal
from secfl.testing.conformance import (
    Capabilities,
    Inputs,
    PhaseRule,
    Quorum,
    SecureAggregationConformance,
    Transcripts,
)
from secfl.types import SchemeSpec

MASKING_PHASES = tuple(
    PhaseRule(name=name) for name in ("advertise", "share", "masked-input", "consistency", "unmask")
)


class WithSecflsWireFormat(SecureAggregationConformance):
    examples = 8

    def reseal(self, cast, envelope, source: np.random.Generator):
        return reseal(cast, envelope, list(Repair)[int(source.integers(1, len(Repair)))])


class TestPlain(WithSecflsWireFormat):
    capabilities = Capabilities(
        phases=(PhaseRule(name="plain-input"),),
        input_phase="plain-input",
        inputs=Inputs.VISIBLE,
        transcripts=Transcripts.REPRODUCIBLE,
        clients=(1, 5),
    )

    def test_a_message_that_claims_to_be_masked_can_be_signed_and_is_refused(self):
        cast, steps = self.rehearsal()
        step = next(one for one in steps if one.envelope.payload[4] == MessageType.PLAIN_INPUT)
        payload = bytearray(step.envelope.payload)
        payload[4] = MessageType.MASKED_INPUT
        envelope = replace(step.envelope, payload=bytes(payload))
        for repair in Repair:
            with pytest.raises(RemoteProtocolError):
                cast.restore(step.snapshot).receive(reseal(cast, envelope, repair))

    def scheme(self):
        return Plain(threads=1)

    def thresholds(self, clients):
        return range(1, clients + 1)


class TestMasking(WithSecflsWireFormat):
    capabilities = Capabilities(phases=MASKING_PHASES, input_phase="masked-input")

    def scheme(self):
        return Masking(threads=1)


class TestCkksSumKey(WithSecflsWireFormat):
    capabilities = Capabilities(phases=MASKING_PHASES, input_phase="masked-input", modulus_bits=(2, 50))

    def scheme(self):
        return Ckks(threads=1)

    def scheme_spec(self):
        return SchemeSpec(name="ckks", parameters=(("key_mode", "sum-key"),))


class TestCkksShared(WithSecflsWireFormat):
    capabilities = Capabilities(
        phases=(
            PhaseRule(name="advertise"),
            PhaseRule(name="ckks-key", quorum=Quorum.ONE),
            PhaseRule(name="ckks-input"),
            PhaseRule(name="ckks-open", quorum=Quorum.ONE),
        ),
        input_phase="ckks-input",
        modulus_bits=(2, 50),
    )

    def scheme(self):
        return Ckks(threads=1)

    def scheme_spec(self):
        return SchemeSpec(name="ckks", parameters=(("key_mode", "shared"),))


@pytest.mark.slow
class TestMaskingThoroughly(TestMasking):
    examples = 150
    collision_rounds = 512


@pytest.mark.slow
class TestCkksSumKeyThoroughly(TestCkksSumKey):
    examples = 60
    collision_rounds = 128


@pytest.mark.slow
class TestCkksSharedThoroughly(TestCkksShared):
    examples = 60
    collision_rounds = 128
