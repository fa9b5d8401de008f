import { computed, signal } from "@preact/signals";
import { countFrom, rangeOf } from "./histogram";
import { decodeMap, decodeScores, type ScoreMap } from "./maps";
import { confusionAt, curvesOf, mistake, type Labeled } from "./metrics";
import { boxesOf, findCells, type Found } from "./regions";
import { Reviews } from "./review";
import type { Finding, ImageRow, MethodSummary, Region, Report, Review, Source, VerdictName } from "./types";

export type SortKey = "high" | "low" | "name" | "regions" | "mistakes";
export type GroupKey = "none" | "folder" | "object" | "similar" | "tag" | "verdict";
export const FLAGS: VerdictName[] = ["flagged", "stands_out", "suspicious"];
const ORDER: VerdictName[] = [...FLAGS, "clean", "undecided"];
const KEPT_MAPS = 400;

export interface Group {
  title: string;
  /** Indices of rows. */
  items: number[];
}

/** State of a viewer over one source: what is asked for, and what follows from it. */
export class ViewerState {
  readonly report: Report;
  readonly rows: ImageRow[];
  readonly scores: Float64Array[];
  readonly reviews: Reviews;
  /** Whether any regions were compared with each other. */
  readonly hasSimilar: boolean;
  /** Index of the method that is shown. */
  readonly method = signal(0);
  /** Threshold of each method, as dragged. */
  readonly thresholds;
  readonly filter = signal("all");
  readonly sort = signal<SortKey>("high");
  readonly group = signal<GroupKey>("none");
  readonly search = signal("");
  readonly heat = signal(0.6);
  readonly marks = signal<"boxes" | "contours" | "none">("contours");
  /** Index of the row that is open; null = the gallery. */
  readonly open = signal<number | null>(null);
  /** Counts changes of reviews, so that views follow. */
  readonly reviewed = signal(0);
  private readonly maps = new Map<string, ScoreMap | null>();
  private readonly found = new Map<string, { at: number | null; found: Found }>();
  private readonly nameRanks: Int32Array;

  constructor(readonly source: Source, storage: Storage | null) {
    this.report = source.report;
    this.rows = source.rows;
    this.scores = this.report.methods.map((method) => decodeScores(method.scores));
    this.hasSimilar = this.rows.some((row) => row.findings.some((finding) => finding.similar !== null));
    this.thresholds = signal(this.report.methods.map((method) => method.threshold));
    this.reviews = new Reviews(`clipspect review ${this.report.results} ${this.report.created}`, storage);
    const collator = new Intl.Collator("en", { numeric: true });
    const order = this.rows.map((_, i) => i).sort((a, b) => collator.compare(this.rows[a].name, this.rows[b].name));
    this.nameRanks = new Int32Array(order.length);
    order.forEach((row, rank) => (this.nameRanks[row] = rank));
  }

  get summary(): MethodSummary {
    return this.report.methods[this.method.value];
  }

  get threshold(): number | null {
    return this.thresholds.value[this.method.value] ?? null;
  }

  get isMoved(): boolean {
    return this.threshold !== this.summary.threshold;
  }

  get range(): [number, number] {
    return rangeOf(this.scores[this.method.value], this.summary.threshold);
  }

  moveThreshold(at: number | null): void {
    this.thresholds.value = this.thresholds.value.map((old, i) => (i === this.method.value ? at : old));
  }

  finding(row: number, method = this.method.value): Finding {
    return this.rows[row].findings[method];
  }

  /** Score of a row; 0 if the method could not score the image. */
  score(row: number, method = this.method.value): number {
    return this.finding(row, method).score ?? 0;
  }

  /** Verdict at the threshold as dragged. */
  verdict(row: number, method = this.method.value): VerdictName {
    const at = this.thresholds.value[method], summary = this.report.methods[method], finding = this.finding(row, method);
    if (at === summary.threshold || finding.score === null) return finding.verdict;
    return at !== null && finding.score >= at ? "flagged" : summary.good ? "clean" : "undecided";
  }

  /** Number of images of the run by verdict; the rows may be fewer. */
  readonly verdicts = computed<[string, number][]>(() => {
    const summary = this.summary, at = this.threshold;
    if (!summary) return [];
    if (at === summary.threshold) return ORDER.filter((name) => summary.verdicts[name]).map((name) => [name, summary.verdicts[name]]);
    const all = this.scores[this.method.value], above = at === null ? 0 : countFrom(all, at);
    const both: [string, number][] = [["flagged", above], [summary.good ? "clean" : "undecided", all.length - above]];
    return both.filter(([, number]) => number);
  });

  map(row: number, method = this.method.value): ScoreMap | null {
    const key = `${row}/${method}`;
    let map = this.maps.get(key);
    if (map === undefined) {
      const encoded = this.source.pictures(row).maps[method];
      map = encoded ? decodeMap(encoded) : null;
      this.maps.set(key, map);
      if (this.maps.size > KEPT_MAPS) this.maps.delete(this.maps.keys().next().value!);
    }
    return map;
  }

  /** Regions at the threshold as dragged, as labeled cells of the map. */
  cells(row: number, method = this.method.value): Found | null {
    const at = this.thresholds.value[method], key = `${row}/${method}`, before = this.found.get(key);
    if (before?.at === at) return before.found;
    const map = this.map(row, method);
    if (!map) return null;
    const found = findCells(map, this.score(row, method), at);
    this.found.delete(key);
    this.found.set(key, { at, found });
    if (this.found.size > KEPT_MAPS) this.found.delete(this.found.keys().next().value!);
    return found;
  }

  regions(row: number, method = this.method.value): Region[] {
    const finding = this.finding(row, method);
    if (this.thresholds.value[method] === this.report.methods[method].threshold) return finding.regions;
    const map = this.map(row, method), found = map && this.cells(row, method);
    return map && found ? boxesOf(found, map, this.rows[row].width, this.rows[row].height) : [];
  }

  review(row: number): Review {
    void this.reviewed.value;
    return this.reviews.of(this.rows[row].name);
  }

  setReview(row: number, change: Partial<Review>): void {
    this.reviews.set(this.rows[row].name, change);
    this.reviewed.value++;
  }

  undo(): void {
    const name = this.reviews.undo();
    this.reviewed.value++;
    const row = this.rows.findIndex((one) => one.name === name);
    if (row >= 0 && this.open.value !== null) this.open.value = row;
  }

  /** Label of a row: a review decides over the folder's name. */
  truth(row: number): "good" | "defect" | null {
    const { decision } = this.review(row);
    return decision === "reject" ? "defect" : decision === "accept" ? "good" : this.rows[row].truth;
  }

  readonly labeled = computed<Labeled[]>(() => {
    const labeled: Labeled[] = [];
    this.rows.forEach((_, i) => {
      const truth = this.truth(i);
      if (truth) labeled.push({ score: this.score(i), defect: truth === "defect" });
    });
    return labeled;
  });
  readonly curves = computed(() => curvesOf(this.labeled.value));
  readonly confusion = computed(() => (this.threshold === null ? null : confusionAt(this.labeled.value, this.threshold)));

  /** Rows that fit filter and search, in order, by group. */
  readonly groups = computed<Group[]>(() => {
    const wanted = this.search.value.trim().toLowerCase(), filter = this.filter.value;
    const items = this.rows.map((_, i) => i).filter((i) =>
      this.fits(i, filter) && (!wanted || this.rows[i].name.toLowerCase().includes(wanted)));
    this.order(items);
    const groups = new Map<string, number[]>();
    for (const item of items)
      for (const title of this.titles(item)) {
        if (!groups.has(title)) groups.set(title, []);
        groups.get(title)!.push(item);
      }
    const named = [...groups].map(([title, members]) => ({ title, items: members }));
    if (this.group.value === "none" || this.group.value === "verdict") return named;
    const isRest = (group: Group): number => (group.title.startsWith("(") ? 1 : 0);
    return named.sort((a, b) => isRest(a) - isRest(b) || a.title.localeCompare(b.title, "en", { numeric: true }));
  });
  /** The same rows in one list. */
  readonly visible = computed<number[]>(() => [...new Set(this.groups.value.flatMap((group) => group.items))]);

  /** Number of rows by filter, in one pass: a dragged threshold changes them at every step. */
  readonly filterCounts = computed<Record<string, number>>(() => {
    void this.reviewed.value;
    const counts: Record<string, number> = { all: this.rows.length, errors: this.report.failed };
    const count = (key: string): void => void (counts[key] = (counts[key] ?? 0) + 1);
    const method = this.method.value, at = this.threshold, isJudged = !this.isMoved, below = this.summary?.good ? "clean" : "undecided";
    this.rows.forEach((row) => {
      const { score, verdict } = row.findings[method], review = this.reviews.all.get(row.name)?.decision ?? null;
      count(isJudged || score === null ? verdict : at !== null && score >= at ? "flagged" : below);
      count(review ?? "unreviewed");
      const truth = review === "reject" ? "defect" : review === "accept" ? "good" : row.truth;
      if (truth && at !== null && mistake(score ?? 0, truth === "defect", at) >= 0) count("mistakes");
    });
    return counts;
  });

  fits(row: number, filter: string): boolean {
    if (filter === "all") return true;
    if (filter === "errors") return false;
    if (filter === "unreviewed") return this.review(row).decision === null;
    if (filter === "accept" || filter === "reject") return this.review(row).decision === filter;
    if (filter === "mistakes") return this.mistake(row) >= 0;
    return this.verdict(row) === filter;
  }

  mistake(row: number): number {
    const truth = this.truth(row), at = this.threshold;
    return truth === null || at === null ? -1 : mistake(this.score(row), truth === "defect", at);
  }

  private order(items: number[]): void {
    const score = (i: number): number => this.score(i), name = (a: number, b: number): number => this.nameRanks[a] - this.nameRanks[b];
    const keys: Record<SortKey, (i: number) => number> = {
      high: (i) => -score(i),
      low: score,
      name: () => 0,
      regions: (i) => -this.regions(i).length,
      mistakes: (i) => -this.mistake(i),
    };
    const key = Float64Array.from(this.rows, () => 0), keyOf = keys[this.sort.value];
    for (const item of items) key[item] = keyOf(item);
    items.sort((a, b) => key[a] - key[b] || (this.sort.value === "name" ? 0 : score(b) - score(a)) || name(a, b));
  }

  private titles(row: number): string[] {
    const { name, object } = this.rows[row];
    switch (this.group.value) {
      case "folder": return [name.includes("/") ? name.slice(0, name.lastIndexOf("/")) : "(top folder)"];
      case "object": return [object || "(no name)"];
      case "verdict": return [this.report.words[this.verdict(row)] ?? this.verdict(row)];
      case "similar": {
        const { similar } = this.finding(row);
        if (!this.regions(row).length) return ["(no region)"];
        return [similar === null ? "(not compared)" : similar ? `Similar ${similar}` : "(unlike the others)"];
      }
      case "tag": {
        const { tags } = this.review(row);
        return tags.length ? tags : ["(no tag)"];
      }
      default: return [""];
    }
  }
}
