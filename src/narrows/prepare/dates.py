"""Dates to seven parts and back: the position in time, and where it stands in the year, the week and the day.

Parts: seconds since 1970 (UTC), then sine and cosine of the day of the year, of the weekday and of the time of day,
those by the column's own zone. Going back, the position gives the day and the time of day is read off its angle,
so that float32 positions (40 s off over ten years) lose no more of the clock than its angle does: 10 ms, to which
it is rounded. Columns whose every time is midnight keep no clock and come back as whole days. Leap seconds are not
known, nor are dates more than about 10,000 years away told apart by season.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from narrows.errors import DataError
from narrows.prepare.arrow import DAY_UNITS, Floats, Values, cast_all, plain
from narrows.prepare.arrow_types import Type, is_date, is_text

PARTS = 7
PARTS_WITHOUT_CLOCK = 5
DAY = 86_400
CLOCK_STEP = 0.01  # seconds: a float32 sine and cosine tell the time of day to 1.2 ms
FAR_DAYS = 3_650_000

Integers = npt.NDArray[np.int64]


def read_dates(array: Values, trained: Type, column: str, first_row: int = 0) -> Floats:
    """A date column as (B, 7) float64 parts, NaN where missing.

    Args:
        array: dates or timestamps of any unit and zone, or text that parses as such. Times without a zone are taken
            as local to the trained one; zoned times in a column trained without a zone lose theirs.
        trained: the type the column had in training.
        column: its name, for messages.
        first_row: id of the first row, for messages.

    Raises:
        DataError: where values are not dates.
    """
    array = plain(array)
    if pa.types.is_null(array.type):
        return np.full((len(array), PARTS), np.nan)
    wanted = "dates, as in training"
    if not is_date(array.type) and not is_text(array.type):
        raise DataError(f"column {column!r} came as {array.type}", wanted, "cast the column to timestamps")
    try:
        moments = _in_zone(_timestamps(array, column, wanted, first_row), getattr(trained, "tz", None))
        local = pc.local_timestamp(moments) if moments.type.tz else moments
    except pa.ArrowInvalid as error:
        raise DataError(f"column {column!r}: {error}", wanted) from error
    return _parts(_counts(moments), _counts(local), DAY_UNITS[moments.type.unit], np.asarray(moments.is_null()))


def _timestamps(array: Values, column: str, wanted: str, first_row: int) -> Values:
    if is_text(array.type):
        return cast_all(array, pa.timestamp("us"), column, wanted, first_row)
    if pa.types.is_date32(array.type):
        return array.cast(pa.timestamp("s"))
    return array.cast(pa.timestamp("ms")) if pa.types.is_date64(array.type) else array


def _in_zone(moments: Values, zone: str | None) -> Values:
    """Timestamps in the trained zone, or without one."""
    if zone is None:
        return pc.local_timestamp(moments) if moments.type.tz else moments
    if moments.type.tz:
        return moments.cast(pa.timestamp(moments.type.unit, zone))
    return pc.assume_timezone(moments, zone, ambiguous="earliest", nonexistent="earliest")


def _counts(moments: Values) -> Integers:
    """Timestamps as counts of their unit since 1970, 0 where missing."""
    return np.asarray(moments.view(pa.int64()).fill_null(0).to_numpy())


def _parts(moments: Integers, local: Integers, day: int, missing: npt.NDArray[np.bool_]) -> Floats:
    days, clock = np.divmod(local, day)
    angles = (day_of_year(days) / 366, ((days + 3) % 7) / 7, clock / day)
    cycles = [wave(2 * np.pi * angle) for angle in angles for wave in (np.sin, np.cos)]
    parts = np.stack([moments / (day / DAY), *cycles], axis=1)
    parts[missing] = np.nan
    return parts


def day_of_year(days: Integers) -> Integers:
    """Days since the first of January, of days since 1970."""
    dates = np.clip(days, -FAR_DAYS, FAR_DAYS).astype("datetime64[D]")
    return np.asarray((dates - dates.astype("datetime64[Y]").astype("datetime64[D]")).astype(np.int64))


def write_dates(parts: Floats, arrow: Type) -> Values:
    """(B, 5 or 7) parts as a column of dates or timestamps, kept within the type's range; NaN becomes null."""
    missing = np.asarray(np.isnan(parts).any(axis=1))
    parts = np.where(missing[:, None], 0.0, parts)
    if pa.types.is_date(arrow):
        unit, zone, limit = "s", None, 2.0**31 * DAY - DAY
    else:
        unit, zone, limit = arrow.unit, arrow.tz, 9.2e18 / (DAY_UNITS[arrow.unit] / DAY)
    if pa.types.is_date64(arrow):
        limit = 9.2e15
    day = DAY_UNITS[unit]
    position = np.rint(np.clip(parts[:, 0], -limit, limit) * (day / DAY)).astype(np.int64)
    stamps = _snapped(position, _clock(parts, day), day, unit, zone)
    if pa.types.is_date(arrow):
        return _with_nulls(stamps.cast(arrow), missing)
    return _with_nulls(stamps, missing)


def _with_nulls(array: Values, missing: npt.NDArray[np.bool_]) -> Values:
    return pc.if_else(pa.array(missing), pa.scalar(None, array.type), array) if missing.any() else array


def _clock(parts: Floats, day: int) -> Integers:
    """Time of day in units, of which a day has `day`; midnight where the parts have no clock."""
    if parts.shape[1] == PARTS_WITHOUT_CLOCK:
        return np.zeros(len(parts), np.int64)
    turn = np.arctan2(parts[:, 5], parts[:, 6]) / (2 * np.pi) % 1
    steps = np.rint(turn * (DAY / CLOCK_STEP)) % (DAY / CLOCK_STEP)
    return np.rint(steps * (day / (DAY / CLOCK_STEP))).astype(np.int64) % day


def _snapped(position: Integers, clock: Integers, day: int, unit: str, zone: str | None) -> Values:
    """The moment nearest to the position that has this time of day on the clocks of the zone."""
    naive = pa.timestamp(unit)
    if zone is None:
        return pa.array(_nearest(position, clock, day)).view(naive)
    moments = pa.array(position).view(pa.timestamp(unit, zone))
    local = _nearest(_counts(pc.local_timestamp(moments)), clock, day)
    # An hour that the clocks strike twice has two moments: the one nearer to the position is meant.
    both = [
        _counts(pc.assume_timezone(pa.array(local).view(naive), zone, ambiguous=side, nonexistent=side))
        for side in ("earliest", "latest")
    ]
    nearer = np.abs(both[0] - position) <= np.abs(both[1] - position)
    return pa.array(np.where(nearer, both[0], both[1])).view(pa.timestamp(unit, zone))


def _nearest(position: Integers, clock: Integers, day: int) -> Integers:
    nearest: Integers = np.floor_divide(position - clock + day // 2, day) * day + clock
    return nearest
