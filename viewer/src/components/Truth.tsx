import { count, fixed } from "../format";
import type { ViewerState } from "../state";

const SIDE = 132;

function Chart({ title, across, up, points, at, area }: {
  title: string; across: string; up: string; points: [number, number][]; at: [number, number] | null; area: string;
}) {
  const place = ([x, y]: [number, number]): string => `${x * SIDE},${(1 - y) * SIDE}`;
  return (
    <figure class="chart">
      <figcaption><b>{title}</b> {area}</figcaption>
      <svg viewBox={`-6 -6 ${SIDE + 12} ${SIDE + 12}`} role="img" aria-label={`${title}, ${area}${at ? `; at the threshold ${across} ${fixed(at[0], 2)}, ${up} ${fixed(at[1], 2)}` : ""}`}>
        <rect class="chart-frame" width={SIDE} height={SIDE} />
        <polyline class="chart-line" points={points.map(place).join(" ")} />
        {at && <circle class="chart-point" cx={at[0] * SIDE} cy={(1 - at[1]) * SIDE} r="5" />}
      </svg>
      <span class="chart-axis">{across} →, {up} ↑</span>
    </figure>
  );
}

/** Confusion counts and curves at the threshold as dragged, where images have labels. */
export function Truth({ state }: { state: ViewerState }) {
  const labeled = state.labeled.value, confusion = state.confusion.value, curves = state.curves.value;
  if (!labeled.length) return null;
  void state.reviewed.value;
  const reviewed = state.rows.filter((_, i) => state.review(i).decision !== null).length;
  const sources = [state.report.truthSource, reviewed ? `${count(reviewed, "review decision")} of this browser` : null].filter(Boolean);
  const recall = confusion && confusion.found + confusion.missed ? confusion.found / (confusion.found + confusion.missed) : null;
  const alarms = confusion && confusion.falseAlarms + confusion.passed ? confusion.falseAlarms / (confusion.falseAlarms + confusion.passed) : null;
  const precision = confusion && confusion.found + confusion.falseAlarms ? confusion.found / (confusion.found + confusion.falseAlarms) : null;
  return (
    <section class="panel truth" id="truth" aria-label="Ground truth">
      <div class="truth-text">
        <h2>Against ground truth</h2>
        <p class="facts">{count(labeled.length, "labeled image")}: {sources.join("; ")}.</p>
        {confusion ? (
          <table class="confusion" id="confusion">
            <thead><tr><th /><th>At or above the threshold</th><th>Below</th></tr></thead>
            <tbody>
              <tr><th scope="row">Defect</th><td class="right">{confusion.found} found</td><td class={confusion.missed ? "wrong" : ""}>{confusion.missed} missed</td></tr>
              <tr><th scope="row">Good</th><td class={confusion.falseAlarms ? "wrong" : ""}>{count(confusion.falseAlarms, "false alarm")}</td><td class="right">{confusion.passed} passed</td></tr>
            </tbody>
          </table>
        ) : <p class="facts">Drag a threshold to count mistakes.</p>}
        <p class="facts">Recall {fixed(recall, 3)} · precision {fixed(precision, 3)} · false-alarm rate {fixed(alarms, 3)}</p>
      </div>
      {curves && <>
        <Chart title="ROC" area={`AUROC ${fixed(curves.auroc)}`} across="false-alarm rate" up="recall" points={curves.roc}
          at={alarms !== null && recall !== null ? [alarms, recall] : null} />
        <Chart title="Precision–recall" area={`AP ${fixed(curves.ap)}`} across="recall" up="precision" points={curves.pr}
          at={precision !== null && recall !== null ? [recall, precision] : null} />
      </>}
    </section>
  );
}
