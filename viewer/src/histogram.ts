export interface Bin {
  low: number;
  high: number;
  count: number;
  /** Number of scores at or above the threshold. */
  above: number;
}

/** How many of the ascending scores are at least a value. */
export function countFrom(scores: Float64Array, value: number): number {
  let low = 0, high = scores.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (scores[middle] < value) low = middle + 1;
    else high = middle;
  }
  return scores.length - low;
}

/** With fewer scores the axis starts at 0: the parts of an image reach down to there. */
const FEW = 3;

/** Range of the axis: all scores and the threshold, with a margin. */
export function rangeOf(scores: Float64Array, threshold: number | null): [number, number] {
  if (!scores.length) return [0, 1];
  if (scores.length < FEW) return [0, Math.min(1, Math.max(scores[scores.length - 1], threshold ?? 0) + 0.05)];
  const marks = [scores[0], scores[scores.length - 1], ...(threshold === null ? [] : [threshold])];
  const low = Math.min(...marks), high = Math.max(...marks), margin = Math.max((high - low) * 0.03, 0.005);
  return [Math.max(0, low - margin), Math.min(1, high + margin)];
}

/** Equal bins over a range. The bin that contains the threshold is split by counting, not by its center. */
export function binScores(scores: Float64Array, low: number, high: number, bins: number, threshold: number | null): Bin[] {
  const width = (high - low) / bins;
  return Array.from({ length: bins }, (_, i) => {
    const start = low + i * width, end = start + width;
    const beyond = i === bins - 1 ? 0 : countFrom(scores, end);
    const number = countFrom(scores, start) - beyond;
    const above = threshold === null ? 0 : Math.min(number, Math.max(0, countFrom(scores, Math.max(start, threshold)) - beyond));
    return { low: start, high: end, count: number, above };
  });
}
