import { useSignal, type Signal } from "@preact/signals";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { fixed } from "../format";
import type { ViewerState } from "../state";
import { ReviewPanel } from "./ReviewPanel";
import { Scale } from "./Scale";
import { Stage, WHOLE, zoomed, type View } from "./Stage";
import { HeatControls } from "./Toolbar";
import { Badge } from "./verdict";

export type Mode = "photo" | "heat" | "side" | "blink" | "methods";
/** Aspect ratio from which pictures are stacked instead of placed side by side. */
const STACK_FROM = 1.7;
const BLINK_MS = 600, SLOW_BLINK_MS = 1500;
const MODES: [Mode, string, string][] = [["photo", "Photo", "P"], ["heat", "Heat", "H"], ["side", "Side by side", "S"], ["blink", "Blink", "B"], ["methods", "All methods", "M"]];

/** One image in full: zoomable pictures, methods, regions, review. */
export function Detail({ state }: { state: ViewerState }) {
  const dialog = useRef<HTMLDialogElement>(null), index = state.open.value;
  const mode = useSignal<Mode>("side"), view = useSignal<View>(WHOLE);
  useEffect(() => {
    const element = dialog.current!;
    if (index === null) element.close();
    else if (!element.open) element.showModal();
    view.value = WHOLE;
  }, [index]);
  const step = (by: number): void => {
    const shown = state.visible.value, at = shown.indexOf(state.open.value ?? -1);
    const next = shown[at + by];
    if (next !== undefined) state.open.value = next;
  };
  const key = (event: KeyboardEvent): void => {
    if (index === null) return;
    const target = event.target as HTMLElement, typing = /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName);
    if ((event.ctrlKey || event.metaKey) && event.key === "z" && !typing) return event.preventDefault(), state.undo();
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (target.getAttribute("role") === "tab" && event.key.startsWith("Arrow")) return;
    const digit = Number(event.key);
    const actions: Record<string, () => void> = {
      ArrowLeft: () => step(-1), ArrowRight: () => step(1),
      "+": () => (view.value = zoomed(view.value, 1.5)), "=": () => (view.value = zoomed(view.value, 1.5)),
      "-": () => (view.value = zoomed(view.value, 1 / 1.5)), "0": () => (view.value = WHOLE),
      a: () => decide("accept"), r: () => decide("reject"), u: () => state.undo(),
      n: () => dialog.current!.querySelector<HTMLElement>("#note")!.focus(), t: () => dialog.current!.querySelector<HTMLElement>("#tags")!.focus(),
      ...Object.fromEntries(MODES.map(([name, , letter]) => [letter.toLowerCase(), () => (mode.value = name)])),
    };
    if (digit >= 1 && digit <= state.report.methods.length) state.method.value = digit - 1;
    else if (actions[event.key]) actions[event.key]();
    else return;
    event.preventDefault();
  };
  const decide = (decision: "accept" | "reject"): void => {
    const at = index!, next = state.visible.value[state.visible.value.indexOf(at) + 1];
    state.setReview(at, { decision });
    if (next !== undefined) state.open.value = next;
  };
  return (
    <dialog id="view" ref={dialog} aria-labelledby="view-name" onKeyDown={key} onClose={() => (state.open.value = null)}
      onClick={(event) => event.target === dialog.current && dialog.current!.close()}>
      {index !== null && <Content state={state} index={index} mode={mode} view={view} onStep={step} onDecide={decide} />}
    </dialog>
  );
}

interface ContentProps {
  state: ViewerState;
  index: number;
  mode: Signal<Mode>;
  view: Signal<View>;
  onStep: (by: number) => void;
  onDecide: (decision: "accept" | "reject") => void;
}

function Content({ state, index, mode, view, onStep, onDecide }: ContentProps) {
  const row = state.rows[index], finding = state.finding(index), shown = state.visible.value, at = shown.indexOf(index);
  const pictures = useMemo(() => state.source.pictures(index), [index]), several = state.report.methods.length > 1;
  const [withReference, showReference] = useState(true), [value, setValue] = useState<number | null>(null), hidden = useBlink(mode.value === "blink");
  const photo = pictures.large ?? pictures.photo, common = { width: row.width, height: row.height, marks: state.marks.value, view };
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
  const method = state.method.value, strength = Math.max(state.heat.value, 0.02);
  return <>
    <div class="top">
      <h2 id="view-name">{row.name}</h2>
      <button type="button" class="icon" id="previous" aria-label="Previous image" disabled={at <= 0} onClick={() => onStep(-1)}>‹</button>
      <button type="button" class="icon" id="next" aria-label="Next image" disabled={at < 0 || at >= shown.length - 1} onClick={() => onStep(1)}>›</button>
      <button type="button" class="icon" id="close" aria-label="Close" onClick={() => (state.open.value = null)}>×</button>
    </div>
    <div class="detail">
      <div class="pictures">
        <div class="detail-tools">
          <div class="segments" role="group" aria-label="View" id="modes">
            {MODES.filter(([name]) => several || name !== "methods").map(([name, label, letter]) => (
              <button type="button" key={name} data-mode={name} aria-pressed={mode.value === name} title={`Key ${letter}`} onClick={() => (mode.value = name)}>{label}</button>
            ))}
          </div>
          {pictures.reference && <label class="slider"><input type="checkbox" id="show-reference" checked={withReference} onChange={(event) => showReference(event.currentTarget.checked)} /> Reference</label>}
          <HeatControls state={state} id="view-heat" />
          <span class="zoom">
            <button type="button" class="icon" aria-label="Zoom out" onClick={() => (view.value = zoomed(view.value, 1 / 1.5))}>−</button>
            <output id="zoom">{Math.round(100 * view.value.zoom)} %</output>
            <button type="button" class="icon" aria-label="Zoom in" onClick={() => (view.value = zoomed(view.value, 1.5))}>+</button>
          </span>
        </div>
        <div class={`pair ${mode.value}${row.width > STACK_FROM * row.height ? " stacked" : ""}`} id="pair">
          {(mode.value === "photo" || mode.value === "side") && plain(photo, "Image")}
          {mode.value === "heat" && heated(method, strength, "Heat and regions")}
          {mode.value === "side" && heated(method, strength, "Heat and regions")}
          {mode.value === "blink" && heated(method, hidden ? 0 : strength, hidden ? "Image" : "Heat and regions")}
          {mode.value === "methods" && state.report.methods.map((one, i) => heated(i, strength, `${one.name} ${fixed(state.finding(index, i).score)}, ${state.report.words[state.verdict(index, i)]}`))}
          {pictures.reference && withReference && plain(pictures.reference, "Reference")}
        </div>
        <Scale threshold={state.threshold} value={value} />
      </div>
      <div class="aside">
        {several && <div class="method-tabs small-tabs" role="group" aria-label="Method">
          {state.report.methods.map((one, i) => (
            <button type="button" key={one.name} aria-pressed={i === method} onClick={() => (state.method.value = i)}>
              <b>{one.name}</b><span>{fixed(state.finding(index, i).score)} {state.report.words[state.verdict(index, i)]}</span>
            </button>
          ))}
        </div>}
        <div class="below"><span class="score" id="view-score">{fixed(finding.score)}</span><Badge state={state} verdict={state.verdict(index)} /></div>
        <p class="facts" id="view-facts">
          {state.threshold === null ? "no threshold" : `threshold ${fixed(state.threshold)}`} · {row.width} × {row.height} pixels · {at + 1} of {shown.length}
          {row.truth && ` · label: ${row.truth}`}
        </p>
        {finding.overlay && <p><a id="view-overlay" href={finding.overlay} target="_blank" rel="noopener">Open the large overlay</a></p>}
        <ReviewPanel state={state} index={index} onDecide={onDecide} />
        <Regions state={state} index={index} onShow={(x, y) => (view.value = zoomed(WHOLE, 4, x, y))} />
      </div>
    </div>
  </>;
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

function Regions({ state, index, onShow }: { state: ViewerState; index: number; onShow: (x: number, y: number) => void }) {
  const regions = state.regions(index), { width, height } = state.rows[index];
  if (!regions.length)
    return <p class="facts">{state.threshold === null ? "Without a threshold no region is marked." : "No region reaches the threshold."}</p>;
  return (
    <table id="view-regions">
      <thead><tr><th>Region</th><th>Peak</th><th>Left, top</th><th>Size</th></tr></thead>
      <tbody>{regions.map(([left, top, wide, tall, , peak], i) => (
        <tr key={i}>
          <td><button type="button" class="link" onClick={() => onShow((left + wide / 2) / width, (top + tall / 2) / height)} aria-label={`Zoom to region ${i + 1}`}>{i + 1}</button></td>
          <td>{peak.toFixed(3)}</td><td>{left}, {top}</td><td>{wide} × {tall}</td>
        </tr>
      ))}</tbody>
    </table>
  );
}
