import type { ComponentChildren } from "preact";
import { capitalized } from "../format";
import type { ViewerState } from "../state";

export function Logo() {
  return (
    <svg width="20" height="20" viewBox="0 0 20 20" aria-hidden="true">
      <rect x="1" y="1" width="18" height="18" rx="5" fill="#1e46be" />
      <circle cx="12" cy="9" r="5" fill="#e22854" />
      <circle cx="12.6" cy="8.4" r="2.4" fill="#ffb000" />
      <path d="M4 7V4h3M16 13v3h-3" stroke="#fff" stroke-width="1.6" fill="none" />
    </svg>
  );
}

export function Banner({ title, kind, children }: { title: string; kind: string; children: ComponentChildren }) {
  return (
    <div class={`banner ${kind}`} role="note">
      <svg width="20" height="20" viewBox="0 0 20 20" fill="none" stroke="currentColor" stroke-width="1.8" stroke-linecap="round" aria-hidden="true">
        <path d="M10 2.5 18.5 17h-17z" stroke-linejoin="round" />
        <path d="M10 8v4M10 14.4v.1" />
      </svg>
      <div><strong>{title}</strong><span>{children}</span></div>
    </div>
  );
}

/** How images are judged, and warnings of the run. */
export function Notes({ state }: { state: ViewerState }) {
  const { report, summary } = state, random = report.weights.toLowerCase().includes("random");
  return <>
    {random && <Banner title="Random weights: these scores mean nothing" kind="loud">
      The model was asked for without trained weights, as a control. Do not judge any part by these results.
    </Banner>}
    {summary?.note && summary.thresholdSource !== "conformal" && (
      <Banner title={summary.threshold === null ? "No threshold can be given" : "How images are judged"} kind={summary.thresholdSource === "gumbel" ? "plain" : ""}>
        {summary.note}
      </Banner>
    )}
    {report.warnings.filter((text) => !(random && /random/i.test(text))).map((text) => <Banner title="Note" kind="plain" key={text}>{text}</Banner>)}
    {report.total - report.failed > report.cardLimit && (
      <Banner title={`The ${report.cardLimit.toLocaleString("en")} highest scores are shown`} kind="plain">
        All {report.total.toLocaleString("en")} images are counted; every row is in the detections folder.
      </Banner>
    )}
  </>;
}

export function Header({ state }: { state: ViewerState }) {
  const { report, summary } = state, date = new Date(report.created);
  const when = isNaN(date.getTime()) ? "" : date.toLocaleString("en-GB", { dateStyle: "long", timeStyle: "short" });
  return (
    <header>
      <div class="kicker"><Logo /><b>clipspect</b> inspection report</div>
      <h1 id="title">{capitalized(report.object) || "Inspection"}</h1>
      <div class="meta">{[report.folder, [summary?.name, report.model].filter(Boolean).join(" · "), when].filter(Boolean).join("  —  ")}</div>
      <Notes state={state} />
    </header>
  );
}
