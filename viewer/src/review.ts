import { csvCell } from "./format";
import type { Review } from "./types";

export interface ReviewChange {
  name: string;
  before: Review | undefined;
}

/** Decisions on images, with undo. Stored in the browser by `storage`, where it allows that. */
export class Reviews {
  readonly all = new Map<string, Review>();
  private readonly history: ReviewChange[] = [];

  constructor(private readonly key: string, private storage: Storage | null) {
    try {
      const stored = storage?.getItem(key);
      for (const [name, review] of stored ? (JSON.parse(stored) as [string, Review][]) : []) this.all.set(name, review);
    } catch {
      this.storage = null;
    }
  }

  /** Whether decisions survive closing the file. */
  get isStored(): boolean {
    return this.storage !== null;
  }

  of(name: string): Review {
    return this.all.get(name) ?? { decision: null, note: "", tags: [] };
  }

  set(name: string, change: Partial<Review>): void {
    this.history.push({ name, before: this.all.get(name) });
    this.put(name, { ...this.of(name), ...change });
  }

  /** Take the latest change back. Return the name of its image. */
  undo(): string | null {
    const last = this.history.pop();
    if (!last) return null;
    this.put(last.name, last.before);
    return last.name;
  }

  get canUndo(): boolean {
    return this.history.length > 0;
  }

  counts(): { accepted: number; rejected: number } {
    const decisions = [...this.all.values()].map((review) => review.decision);
    return { accepted: decisions.filter((d) => d === "accept").length, rejected: decisions.filter((d) => d === "reject").length };
  }

  private put(name: string, review: Review | undefined): void {
    if (!review || (!review.decision && !review.note && !review.tags.length)) this.all.delete(name);
    else this.all.set(name, review);
    try {
      this.storage?.setItem(this.key, JSON.stringify([...this.all]));
    } catch {
      this.storage = null; // full or forbidden; the review bar shows `isStored`
    }
  }
}

export interface ReviewedImage {
  name: string;
  decision: string | null;
  note: string;
  tags: string[];
  method: string;
  score: number | null;
  verdict: string;
  threshold: number | null;
}

export const reviewJson = (images: ReviewedImage[], about: Record<string, unknown>): string =>
  JSON.stringify({ ...about, images }, null, 1);

export function reviewCsv(images: ReviewedImage[]): string {
  const lines = images.map((i) =>
    [i.name, i.decision, i.note, i.tags.join(";"), i.method, i.score, i.verdict, i.threshold].map(csvCell).join(","));
  return ["path,decision,note,tags,method,score,verdict,threshold", ...lines].join("\r\n") + "\r\n";
}
