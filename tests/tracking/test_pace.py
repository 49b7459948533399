"""How far a method has come, in words."""

from flwr_dmml.tracking.pace import Pace, clock


def test_time_left_follows_the_pace_so_far() -> None:
    seconds = iter((100.0, 110.0, 130.0, 190.0))
    pace = Pace(4, now=lambda: next(seconds))  # begins at 100 s
    assert str(pace) == "round 1 of 4"
    pace.advance()
    assert str(pace) == "round 2 of 4, about 0:30 left"  # 10 s a round
    pace.advance()
    assert pace.left_s == 30.0  # 15 s a round
    pace.advance()
    pace.advance()
    assert str(pace) == "round 4 of 4"


def test_minutes_and_hours() -> None:
    assert [clock(s) for s in (5, 65.4, 7265)] == ["0:05", "1:05", "2:01:05"]
