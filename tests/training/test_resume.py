"""Where a run stands, written and read back."""

import json
import math

from mindrepvgg.training.resume import Position


class TestPosition:
    def test_a_round_trip_through_json(self):
        position = Position(
            ranks=8,
            images_per_step=256,
            epoch=3,
            step_in_epoch=7,
            skipped=2,
            best_top1=71.25,
            best_epoch=2,
            kept=[[2, 71.25], [3, None]],
            interval_losses=[0.5, None, 0.1],
        )
        text = json.dumps(position.to_dict(), allow_nan=False)
        found = Position.from_dict(json.loads(text))
        assert found == position
        assert found.best_ema_top1 == -math.inf
        assert json.loads(text)["best_ema_top1"] is None

    def test_a_fresh_one(self):
        found = Position.from_dict(json.loads(json.dumps(Position().to_dict(), allow_nan=False)))
        assert found == Position()
        assert found.best_top1 == -math.inf
        assert found.kept is not Position().kept
