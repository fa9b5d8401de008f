import { getJson } from "../page/api";

export type Place = "ok" | "ng" | "error";

/** An image that a watch has judged: `clipspect.ui.line`. */
export interface JudgedImage {
  path: string;
  verdict: string;
  score: number | null;
  threshold: number | null;
  /** Why it failed; null otherwise. */
  reason: string | null;
  /** Seconds since 1970. */
  time: number;
  place: Place;
  /** Name of its overlay file; null if there is none. */
  overlay: string | null;
  decision: "accept" | "reject" | null;
  note: string;
}

export interface LineState {
  object: string;
  profile: string;
  /** When the present shift began, local time. */
  since: string;
  counts: Record<Place, number>;
  /** Actions that wait for their target. */
  waiting: number;
  givenUp: number;
  latest: JudgedImage | null;
  rejects: JudgedImage[];
}

export const readState = (): Promise<LineState> => getJson<LineState>("/v1/line");

export const overlayAddress = (image: JudgedImage): string =>
  `/v1/line/overlays/${image.overlay!.split("/").map(encodeURIComponent).join("/")}`;

export async function decide(path: string, decision: "accept" | "reject" | "undo", note = ""): Promise<void> {
  const headers = { "content-type": "application/json" };
  const answer = await fetch("/v1/line/reviews", { method: "POST", headers, body: JSON.stringify({ path, decision, note }) });
  if (!answer.ok) throw new Error((await answer.json()).error?.message ?? `the decision was not stored (${answer.status})`);
}
