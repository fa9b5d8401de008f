import { percent } from "../format";
import type { ViewerState } from "../state";
import { kindOf } from "./verdict";

const CLASSES: Record<string, string> = { flag: "flagged", ok: "clean", marked: "flagged" };

export function Counts({ state }: { state: ViewerState }) {
  const { total, failed, words } = state.report;
  const cells: [number, string, string][] = [
    [total, total === 1 ? "image" : "images", ""],
    ...state.verdicts.value.map(([name, number]): [number, string, string] => [number, words[name], CLASSES[kindOf(name)] ?? "open"]),
    [failed, "failed", "failed"],
  ];
  return (
    <div class="panel counts" id="counts">
      {cells.map(([number, label, kind]) => (
        <div class={`${kind}${number ? "" : " zero"}`} key={label}>
          <span class="number">{number.toLocaleString("en")}</span>
          <span class="label">{label}{kind && total && number ? ` · ${percent(number / total)}` : ""}</span>
        </div>
      ))}
    </div>
  );
}
