import { valueOf } from "./scale";

export interface Labeled {
  score: number;
  defect: boolean;
}

export interface Confusion {
  found: number;
  missed: number;
  falseAlarms: number;
  passed: number;
}

export interface Curves {
  /** [false-alarm rate, share of defects found], from (0, 0) to (1, 1). */
  roc: [number, number][];
  /** [share of defects found, precision], by falling threshold. */
  pr: [number, number][];
  auroc: number;
  /** Average precision. */
  ap: number;
}

export function confusionAt(labeled: Labeled[], threshold: number): Confusion {
  const result = { found: 0, missed: 0, falseAlarms: 0, passed: 0 };
  for (const { score, defect } of labeled)
    if (score >= threshold) defect ? result.found++ : result.falseAlarms++;
    else defect ? result.missed++ : result.passed++;
  return result;
}

/** ROC and precision-recall curves; null unless there are both good and defective images. Ties share one point. */
export function curvesOf(labeled: Labeled[]): Curves | null {
  const defects = labeled.filter((one) => one.defect).length, good = labeled.length - defects;
  if (!defects || !good) return null;
  const sorted = [...labeled].sort((a, b) => b.score - a.score);
  const roc: [number, number][] = [[0, 0]], pr: [number, number][] = [];
  let found = 0, alarms = 0, auroc = 0, ap = 0;
  for (let i = 0; i < sorted.length; ) {
    const before = { found, alarms }, { score } = sorted[i];
    for (; i < sorted.length && sorted[i].score === score; i++) sorted[i].defect ? found++ : alarms++;
    auroc += ((alarms - before.alarms) * (found + before.found)) / 2;
    ap += ((found - before.found) / defects) * (found / (found + alarms));
    roc.push([alarms / good, found / defects]);
    pr.push([found / defects, found / (found + alarms)]);
  }
  return { roc, pr, auroc: auroc / (defects * good), ap };
}

/** How far a wrong verdict is from the threshold, on the scale of maps; -1 for a right one. */
export function mistake(score: number, defect: boolean, threshold: number): number {
  if (score >= threshold === defect) return -1;
  return Math.abs(valueOf(score) - valueOf(threshold));
}
