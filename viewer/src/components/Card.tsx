import { memo } from "preact/compat";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { drawHeat, drawOutlines, drawVeil, soon } from "../draw";
import { count, fixed } from "../format";
import { FLAGS, type ViewerState } from "../state";
import type { Region } from "../types";
import { Badge } from "./verdict";

export const LABELED_BOXES = 1;

/** Boxes of regions over a picture of the image's own proportions. */
export function Boxes({ regions, width, height, labeled }: { regions: Region[]; width: number; height: number; labeled: number }) {
  return <>{regions.map(([left, top, wide, tall, , peak], i) => {
    const classes = ["box"];
    if (top / height < 0.12) classes.push((top + tall) / height > 0.88 ? "inside" : "low");
    if (left / width > 0.8) classes.push("right");
    const style = { left: `${(100 * left) / width}%`, top: `${(100 * top) / height}%`, width: `${(100 * wide) / width}%`, height: `${(100 * tall) / height}%` };
    return <div class={classes.join(" ")} style={style} key={i} data-box={[left, top, wide, tall].join(" ")}>{i < labeled && <span>{peak.toFixed(2)}</span>}</div>;
  })}</>;
}

/** One image of the gallery: photo, heat, regions, score and verdict. */
export const Card = memo(function Card({ state, index }: { state: ViewerState; index: number }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const row = state.rows[index], finding = state.finding(index), verdict = state.verdict(index), threshold = state.threshold;
  const pictures = useMemo(() => state.source.pictures(index), [index]);
  const marks = state.marks.value, heat = state.heat.value, method = state.method.value, review = state.review(index), mistake = state.mistake(index) >= 0;
  const regions = state.regions(index), [low, high] = state.range;
  useEffect(() => soon(() => {
    const element = canvas.current, map = state.map(index, method);
    if (!element || !map) return;
    const ratio = Math.min(2, devicePixelRatio || 1);
    element.width = Math.max(1, Math.round(element.clientWidth * ratio));
    element.height = Math.max(1, Math.round(element.clientHeight * ratio));
    const context = element.getContext("2d")!, place = { x: 0, y: 0, width: element.width, height: element.height };
    drawVeil(context, map, place);
    drawHeat(context, map, place, heat);
    const found = marks === "contours" ? state.cells(index, method) : null;
    if (found) drawOutlines(context, map, found, place, ratio);
  }), [index, method, threshold, marks, heat]);
  const shape = row.width / row.height, along = (value: number): string => `${100 * Math.min(1, Math.max(0, (value - low) / (high - low)))}%`;
  const key = (event: KeyboardEvent): void => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "a") state.setReview(index, { decision: "accept" });
    else if (event.key === "r") state.setReview(index, { decision: "reject" });
    else if (event.key === "u") state.undo();
    else return;
    event.preventDefault();
  };
  return (
    <button type="button" class="card" data-index={index} data-name={row.name} data-verdict={verdict} data-score={state.score(index)} onKeyDown={key}
      onClick={() => (state.open.value = index)}>
      <span class="stage">
        <span class="frame" style={{ aspectRatio: `${row.width} / ${row.height}`, width: shape >= 4 / 3 ? "100%" : `${(100 * shape) / (4 / 3)}%` }}>
          {pictures.photo && <img src={pictures.photo} alt="" decoding="async" />}
          <canvas ref={canvas} />
          {marks === "boxes" && <Boxes regions={regions} width={row.width} height={row.height} labeled={LABELED_BOXES} />}
        </span>
        {review.decision && <span class={`decision ${review.decision}`}>{review.decision === "accept" ? "✓ accepted" : "✗ rejected"}</span>}
        {mistake && <span class="decision mistake">{state.score(index) >= (threshold ?? 2) ? "false alarm" : "missed"}</span>}
      </span>
      <span class="about">
        <span class="name" title={row.name}><bdi>{row.name}</bdi></span>
        <span class="line"><span class="score">{fixed(finding.score)}</span><Badge state={state} verdict={verdict} /></span>
        <span class={FLAGS.includes(verdict) ? "meter flag" : "meter"}><i style={{ width: along(state.score(index)) }} />{threshold !== null && <b style={{ left: along(threshold) }} />}</span>
        <span class="regions">{regions.length ? count(regions.length, "region") : "no region"}{review.note && " · note"}{review.tags.map((tag) => ` · ${tag}`)}</span>
      </span>
    </button>
  );
});
