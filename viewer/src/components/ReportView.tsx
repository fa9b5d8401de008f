import { save, tableCsv } from "../download";
import { count } from "../format";
import { reviewCsv, reviewJson, type ReviewedImage } from "../review";
import type { ViewerState } from "../state";
import { Counts } from "./Counts";
import { Detail } from "./Detail";
import { Gallery } from "./Gallery";
import { Header } from "./Header";
import { Histogram, ThresholdControls } from "./Histogram";
import { MethodTabs } from "./MethodTabs";
import { ReviewBar, Toolbar } from "./Toolbar";
import { Truth } from "./Truth";

export function exportReview(state: ViewerState, kind: "json" | "csv"): void {
  const { report, summary, threshold } = state, images: ReviewedImage[] = [];
  state.rows.forEach((row, i) => {
    if (!state.reviews.all.has(row.name)) return;
    const { decision, note, tags } = state.reviews.of(row.name);
    images.push({ name: row.name, decision, note, tags, method: summary.name, score: state.finding(i).score, verdict: state.verdict(i), threshold });
  });
  const about = { clipspect: report.version, results: report.results, object: report.object, model: report.model, created: report.created };
  if (kind === "csv") save("review.csv", reviewCsv(images), "text/csv");
  else save("review.json", reviewJson(images, about), "application/json");
}

/** Summary, gallery and detail view of one run: the whole report, and the results of the page. */
export function Results({ state }: { state: ViewerState }) {
  return <>
    <MethodTabs state={state} />
    <section class="summary" aria-label="Summary">
      <Counts state={state} />
      <div class="panel histogram">
        <h2>Scores</h2>
        <Histogram state={state} />
        <ThresholdControls state={state} />
        <div class="key">
          {state.summary?.thresholdSource === "conformal" && <span>{state.summary.note}</span>}
          <span><i class="swatch-clean" />below the threshold</span><span><i class="swatch-flag" />at or above it</span>
        </div>
      </div>
    </section>
    <Truth state={state} />
    <Toolbar state={state} />
    <ReviewBar state={state} onExport={(kind) => exportReview(state, kind)} onTable={() => save("detections.csv", tableCsv(state), "text/csv")} />
    <Gallery state={state} />
    <Errors state={state} />
    <Detail state={state} />
  </>;
}

export function ReportView({ state }: { state: ViewerState }) {
  return <>
    <div class="stripe" />
    <main>
      <Header state={state} />
      <details id="details"><summary>Settings of this run</summary>
        <dl class="settings" id="settings">{state.report.settings.map(([name, value]) => <><dt>{name}</dt><dd>{value}</dd></>)}</dl>
      </details>
      <Results state={state} />
    </main>
  </>;
}

function Errors({ state }: { state: ViewerState }) {
  const { failed, errors } = state.report;
  if (!failed || !["all", "errors"].includes(state.filter.value)) return null;
  return (
    <section class="errors panel" id="errors">
      <h2>{count(failed, "image")} failed</h2>
      <p>{failed > errors.length ? `The first ${errors.length} of ${failed}.` : "They are tried again when the same command runs again."}</p>
      <table><thead><tr><th>Image</th><th>Reason and remedy</th></tr></thead>
        <tbody>{errors.map(([name, reason]) => <tr key={name}><td>{name}</td><td>{reason}</td></tr>)}</tbody></table>
    </section>
  );
}
