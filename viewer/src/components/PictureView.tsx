import type { Signal } from "@preact/signals";
import { useEffect, useMemo, useState } from "preact/hooks";
import { fixed } from "../format";
import type { ViewerState } from "../state";
import { Scale } from "./Scale";
import { Stage, zoomed, type View } from "./Stage";
import { HeatControls } from "./Toolbar";

export type Mode = "photo" | "heat" | "side" | "blink" | "methods";
/** Name, label and key of each way to look at an image. */
export const MODES: [Mode, string, string][] = [["photo", "Image", "P"], ["heat", "Heat", "H"], ["side", "Side by side", "S"], ["blink", "Blink", "B"], ["methods", "All methods", "M"]];
/** Aspect ratio from which pictures are stacked instead of placed side by side. */
const STACK_FROM = 1.7;
const BLINK_MS = 600, SLOW_BLINK_MS = 1500;

interface PictureViewProps {
  state: ViewerState;
  index: number;
  mode: Signal<Mode>;
  view: Signal<View>;
}

/** Pictures of one image that zoom together: photo, heat of one or all methods, reference. */
export function PictureView({ state, index, mode, view }: PictureViewProps) {
  const row = state.rows[index], pictures = useMemo(() => state.source.pictures(index), [index, state]), several = state.report.methods.length > 1;
  const [withReference, showReference] = useState(true), [chosen, choose] = useState(0), [value, setValue] = useState<number | null>(null);
  const hidden = useBlink(mode.value === "blink");
  const photo = pictures.large ?? pictures.photo, common = { width: row.width, height: row.height, marks: state.marks.value, view };
  const { references } = pictures, reference = references[Math.min(chosen, references.length - 1)];
  const heated = (method: number, heat: number, caption: string) => {
    const regions = state.regions(index, method);
    return (
      <figure key={method}>
        <figcaption>{caption}</figcaption>
        <Stage {...common} photo={photo} map={state.map(index, method)} found={state.cells(index, method)} regions={regions} heat={heat}
          onValue={setValue} label={`${row.name} with heat of ${state.report.methods[method].name}, ${regions.length} regions`} />
      </figure>
    );
  };
  const plain = (source: string | null, caption: string) => (
    <figure key={caption}>
      <figcaption>{caption}</figcaption>
      <Stage {...common} photo={source} map={null} found={null} regions={[]} heat={0} label={`${row.name}, ${caption.toLowerCase()}`} />
    </figure>
  );
  const method = state.method.value, strength = state.heat.value;
  return (
    <div class="pictures">
      <div class="detail-tools">
        <div class="segments" role="group" aria-label="View" id="modes">
          {MODES.filter(([name]) => several || name !== "methods").map(([name, label, letter]) => (
            <button type="button" key={name} data-mode={name} aria-pressed={mode.value === name} title={`Key ${letter}`} onClick={() => (mode.value = name)}>{label}</button>
          ))}
        </div>
        {reference && <label class="slider"><input type="checkbox" id="show-reference" checked={withReference} onChange={(event) => showReference(event.currentTarget.checked)} /> Reference</label>}
        {references.length > 1 && withReference && (
          <select id="which-reference" aria-label="Which reference" value={chosen} onChange={(event) => choose(Number(event.currentTarget.value))}>
            {references.map((_, i) => <option value={i} key={i}>{i + 1} of {references.length}</option>)}
          </select>
        )}
        <HeatControls state={state} id="view-heat" />
        <span class="zoom">
          <button type="button" class="icon" aria-label="Zoom out" onClick={() => (view.value = zoomed(view.value, 1 / 1.5))}>−</button>
          <output id="zoom">{Math.round(100 * view.value.zoom)} %</output>
          <button type="button" class="icon" aria-label="Zoom in" onClick={() => (view.value = zoomed(view.value, 1.5))}>+</button>
        </span>
      </div>
      <div class={`pair ${mode.value}${row.width > STACK_FROM * row.height ? " stacked" : ""}`} id="pair">
        {(mode.value === "photo" || mode.value === "side") && plain(photo, "Image")}
        {(mode.value === "heat" || mode.value === "side") && heated(method, strength, "Heat and regions")}
        {mode.value === "blink" && heated(method, hidden ? -1 : strength, hidden ? "Image" : "Heat and regions")}
        {mode.value === "methods" && state.report.methods.map((one, i) => heated(i, strength, `${one.name} ${fixed(state.finding(index, i).score)}, ${state.report.words[state.verdict(index, i)]}`))}
        {reference && withReference && plain(reference, "Reference")}
      </div>
      <Scale threshold={state.threshold} value={value} />
    </div>
  );
}

/** Whether the heat is hidden now; it alternates while the image blinks. */
function useBlink(on: boolean): boolean {
  const [hidden, setHidden] = useState(false);
  useEffect(() => {
    setHidden(false);
    if (!on) return;
    const slow = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const timer = setInterval(() => setHidden((before) => !before), slow ? SLOW_BLINK_MS : BLINK_MS);
    return () => clearInterval(timer);
  }, [on]);
  return hidden;
}
