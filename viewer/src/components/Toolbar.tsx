import { useEffect } from "preact/hooks";
import { count } from "../format";
import type { GroupKey, SortKey, ViewerState } from "../state";
import { Scale } from "./Scale";
import { wordOf } from "./verdict";

export function Toolbar({ state }: { state: ViewerState }) {
  void state.reviewed.value;
  const { report, rows } = state, counts = state.filterCounts.value, number = (filter: string): number => counts[filter] ?? 0;
  const filters: [string, string, number][] = [
    ["all", "All", rows.length],
    ...state.verdicts.value.map(([name]): [string, string, number] => [name, wordOf(state, name), number(name)]),
  ];
  if (state.labeled.value.length && state.threshold !== null) filters.push(["mistakes", "Mistakes", number("mistakes")]);
  if (state.reviews.all.size) filters.push(["unreviewed", "Not reviewed", number("unreviewed")], ["reject", "Rejected", number("reject")], ["accept", "Accepted", number("accept")]);
  filters.push(["errors", "Errors", report.failed]);
  const isGone = !filters.some(([key]) => key === state.filter.value);
  useEffect(() => {
    if (isGone) state.filter.value = "all"; // the threshold was dragged, and no image has this verdict now
  }, [isGone]);
  const sorts: [SortKey, string][] = [["high", "Highest score first"], ["low", "Lowest score first"], ["name", "Name"], ["regions", "Most regions first"]];
  if (state.labeled.value.length) sorts.push(["mistakes", "Worst mistakes first"]);
  const groups: [GroupKey, string][] = [["none", "No groups"], ["folder", "Group by folder"], ["object", "Group by object"], ["verdict", "Group by verdict"], ["tag", "Group by tag"]];
  if (state.hasSimilar) groups.push(["similar", "Similar defects"]);
  return (
    <nav class="tools" aria-label="Sort and filter">
      <div class="segments" role="group" aria-label="Show" id="filters">
        {filters.map(([key, label, many]) => (
          <button type="button" key={key} data-key={key} aria-pressed={state.filter.value === key} onClick={() => (state.filter.value = key)}>
            {label}<span>{many.toLocaleString("en")}</span>
          </button>
        ))}
      </div>
      <select id="sort" aria-label="Sort by" value={state.sort.value} onChange={(event) => (state.sort.value = event.currentTarget.value as SortKey)}>
        {sorts.map(([key, label]) => <option value={key} key={key}>{label}</option>)}
      </select>
      <select id="group" aria-label="Group by" value={state.group.value} onChange={(event) => (state.group.value = event.currentTarget.value as GroupKey)}>
        {groups.map(([key, label]) => <option value={key} key={key}>{label}</option>)}
      </select>
      <input type="search" id="search" placeholder="Find a name" aria-label="Find a name" value={state.search.value}
        onInput={(event) => (state.search.value = event.currentTarget.value)} />
      <HeatControls state={state} id="heat" />
      <Scale threshold={state.threshold} />
    </nav>
  );
}

/** Opacity of the heat and how regions are marked: the same in gallery and detail view. */
export function HeatControls({ state, id }: { state: ViewerState; id: string }) {
  return <>
    <label class="slider">Heat <input type="range" id={id} min="0" max="100" value={100 * state.heat.value}
      onInput={(event) => (state.heat.value = Number(event.currentTarget.value) / 100)} /></label>
    <label class="slider">Regions <select id={`${id}-marks`} value={state.marks.value}
      onChange={(event) => (state.marks.value = event.currentTarget.value as "boxes" | "contours" | "none")}>
      <option value="contours">contours</option><option value="boxes">boxes</option><option value="none">hidden</option>
    </select></label>
  </>;
}

/** Progress of the review, and its export. */
export function ReviewBar({ state, onExport, onTable }: { state: ViewerState; onExport: (kind: "json" | "csv") => void; onTable: () => void }) {
  void state.reviewed.value;
  const { accepted, rejected } = state.reviews.counts(), none = !state.reviews.all.size;
  return (
    <div class="review-bar" id="review-bar">
      <span role="status">{none
        ? "Review with the keyboard: open an image, then A accepts, R rejects, N writes a note, U undoes."
        : `Reviewed ${count(accepted + rejected, "image")} of ${state.rows.length.toLocaleString("en")}: ${accepted} accepted, ${rejected} rejected.` +
          (state.reviews.isStored ? " Kept in this browser." : " Not kept by this browser: export before you close the page.")}</span>
      <button type="button" class="small" id="export-json" disabled={none} onClick={() => onExport("json")}>Review as JSON</button>
      <button type="button" class="small" id="export-csv" disabled={none} onClick={() => onExport("csv")}>Review as CSV</button>
      <button type="button" class="small" id="save-table" onClick={onTable}>Table of all images</button>
      <button type="button" class="small" id="undo" disabled={!state.reviews.canUndo} onClick={() => state.undo()}>Undo</button>
    </div>
  );
}
