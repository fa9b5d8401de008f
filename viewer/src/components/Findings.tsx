import type { Signal } from "@preact/signals";
import { mapPng, overlayPng, save } from "../download";
import { fixed } from "../format";
import type { ViewerState } from "../state";
import { OverlayLink } from "./OverlayLink";
import { ReviewPanel } from "./ReviewPanel";
import { WHOLE, zoomed, type View } from "./Stage";
import { Badge } from "./verdict";

interface FindingsProps {
  state: ViewerState;
  index: number;
  view: Signal<View>;
  onDecide: (decision: "accept" | "reject") => void;
}

/** What was found on one image: methods, score, verdict, review, regions, downloads. */
export function Findings({ state, index, view, onDecide }: FindingsProps) {
  const row = state.rows[index], finding = state.finding(index), method = state.method.value, at = state.visible.value.indexOf(index);
  const stem = row.name.replace(/^.*\//, "").replace(/\.[^.]*$/, "") || "image", map = state.map(index);
  return (
    <div class="aside">
      {state.report.methods.length > 1 && <div class="method-tabs small-tabs" role="group" aria-label="Method">
        {state.report.methods.map((one, i) => (
          <button type="button" key={one.name} aria-pressed={i === method} onClick={() => (state.method.value = i)}>
            <b>{one.name}</b><span>{fixed(state.finding(index, i).score)} {state.report.words[state.verdict(index, i)]}</span>
          </button>
        ))}
      </div>}
      <div class="below"><span class="score" id="view-score">{fixed(finding.score)}</span><Badge state={state} verdict={state.verdict(index)} /></div>
      <p class="facts" id="view-facts">
        {state.threshold === null ? "no threshold" : `threshold ${fixed(state.threshold)}`} · {row.width} × {row.height} pixels
        {at >= 0 && ` · ${at + 1} of ${state.visible.value.length}`}{row.truth && ` · label: ${row.truth}`}
      </p>
      {finding.overlay && <OverlayLink address={finding.overlay} />}
      <ReviewPanel state={state} index={index} onDecide={onDecide} />
      <Regions state={state} index={index} onShow={(x, y) => (view.value = zoomed(WHOLE, 4, x, y))} />
      {map && <div class="downloads">
        <button type="button" class="small" id="save-overlay" onClick={() => void overlayPng(state, index).then((file) => save(`${stem}.overlay.png`, file))}>Save overlay</button>
        <button type="button" class="small" id="save-map" title="16-bit grayscale in image size; 65535 is score 1"
          onClick={() => save(`${stem}.map.png`, mapPng(map, row.width, row.height))}>Save map</button>
      </div>}
    </div>
  );
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
