import { capitalized } from "../format";
import type { ViewerState } from "../state";
import type { VerdictName } from "../types";

const KINDS: Record<string, string> = { flagged: "flag", stands_out: "flag", suspicious: "marked", clean: "ok", error: "marked" };

export const kindOf = (verdict: string): string => KINDS[verdict] ?? "open";

export const wordOf = (state: ViewerState, verdict: VerdictName | string): string =>
  capitalized(state.report.words[verdict] ?? "not judged");

export function Badge({ state, verdict }: { state: ViewerState; verdict: VerdictName }) {
  return <span class={`badge ${kindOf(verdict)}`}>{wordOf(state, verdict)}</span>;
}
