import { useEffect, useRef, useState } from "preact/hooks";
import { count, fixed, quoted } from "../format";
import { binScores, countFrom } from "../histogram";
import type { ViewerState } from "../state";

const BINS = 48, HEIGHT = 190, TOP = 26, BOTTOM = HEIGHT - 22;
const STEP = 0.001;

/** The scores of all images. Bars are split at the threshold, which can be dragged. */
export function Histogram({ state }: { state: ViewerState }) {
  const box = useRef<HTMLDivElement>(null), [width, setWidth] = useState(600);
  useEffect(() => {
    const observer = new ResizeObserver(() => box.current && setWidth(box.current.clientWidth || 600));
    observer.observe(box.current!);
    return () => observer.disconnect();
  }, []);
  const scores = state.scores[state.method.value], [low, high] = state.range, threshold = state.threshold;
  if (!scores.length) return <div ref={box}><p class="facts">No image was scored.</p></div>;
  const bins = binScores(scores, low, high, BINS, threshold), most = Math.max(1, ...bins.map((bin) => bin.count));
  const x = (value: number): number => ((value - low) / (high - low)) * width;
  const digits = high - low < 0.1 ? 3 : 2, wide = Math.max(1, width / BINS - 1.5);
  const at = threshold === null ? null : x(Math.min(high, Math.max(low, threshold)));
  const drag = (event: PointerEvent): void => {
    const place = box.current!.getBoundingClientRect();
    state.moveThreshold(clamp(state, low + ((event.clientX - place.left) / place.width) * (high - low)));
  };
  return (
    <div id="histogram" ref={box} onPointerDown={(event) => { box.current!.setPointerCapture(event.pointerId); drag(event); }}
      onPointerMove={(event) => event.buttons && drag(event)} data-low={low} data-high={high}>
      <svg viewBox={`0 0 ${width} ${HEIGHT}`} role="img" aria-label={`Histogram of ${scores.length} scores, threshold ${fixed(threshold)}`}>
        <line class="axis" x1="0" x2={width} y1={BOTTOM} y2={BOTTOM} />
        {bins.map((bin) => {
          if (!bin.count) return null;
          const whole = Math.max(2, (bin.count / most) * (BOTTOM - TOP)), part = (whole * bin.above) / bin.count;
          const note = `${fixed(bin.low)} to ${fixed(bin.high)}: ${bin.count}${bin.above ? `, ${bin.above} at or above the threshold` : ""}`;
          return (
            <g key={bin.low}>
              <title>{note}</title>
              {whole > part && <rect class="bar-clean" rx="1.5" x={x(bin.low) + 0.5} y={BOTTOM - whole + part} width={wide} height={whole - part} />}
              {part > 0 && <rect class="bar-flag" rx="1.5" x={x(bin.low) + 0.5} y={BOTTOM - whole} width={wide} height={part} />}
            </g>
          );
        })}
        {at !== null && <>
          <line class="limit" x1={at} x2={at} y1="6" y2={BOTTOM} />
          <circle class="knob" cx={at} cy={BOTTOM} r="6" />
          <text class="limit-text" x={at + (at > width * 0.7 ? -9 : 9)} y="16" text-anchor={at > width * 0.7 ? "end" : "start"}>threshold {fixed(threshold)}</text>
        </>}
        <text x="0" y={HEIGHT - 5}>{fixed(low, digits)}</text>
        <text x={width / 2} y={HEIGHT - 5} text-anchor="middle">{fixed((low + high) / 2, digits)}</text>
        <text x={width} y={HEIGHT - 5} text-anchor="end">{fixed(high, digits)}</text>
      </svg>
    </div>
  );
}

function clamp(state: ViewerState, value: number): number {
  const [low, high] = bounds(state);
  return Math.round(Math.min(high, Math.max(low, value)) / STEP) * STEP;
}

function bounds(state: ViewerState): [number, number] {
  const [low, high] = state.range;
  return [Math.max(0.005, Math.floor(200 * low) / 200), Math.min(0.995, Math.ceil(200 * high) / 200)];
}

/** The slider, what follows from its threshold, and the command that makes it permanent. */
export function ThresholdControls({ state }: { state: ViewerState }) {
  const [copied, setCopied] = useState("Copy"), field = useRef<HTMLInputElement>(null);
  const { threshold, isMoved, summary } = state, scores = state.scores[state.method.value], [low, high] = bounds(state);
  if (!scores.length) return null;
  const above = threshold === null ? 0 : countFrom(scores, threshold);
  const said = threshold === null
    ? "No threshold was given. Drag to try one."
    : `At ${threshold.toFixed(3)}: ${count(above, "image")} of ${scores.length.toLocaleString("en")} at or above` +
      (summary.threshold === null || !isMoved ? "" : ` (${countFrom(scores, summary.threshold)} at ${summary.threshold.toFixed(3)}, as judged)`);
  const command = threshold === null ? "" : permanentCommand(state, threshold);
  const copy = async (): Promise<void> => {
    field.current!.select();
    try {
      await navigator.clipboard.writeText(command);
      setCopied("Copied");
    } catch {
      setCopied("Press Ctrl+C");
    }
    setTimeout(() => setCopied("Copy"), 2000);
  };
  return <>
    <div class="live">
      <label>Try a threshold <input type="range" id="threshold" min={low} max={high} step={STEP} value={threshold ?? 0.5} aria-describedby="what-if"
        onInput={(event) => state.moveThreshold(clamp(state, Number(event.currentTarget.value)))} /></label>
      <span id="what-if" role="status">{said}</span>
      {isMoved && <button type="button" class="small" id="reset" onClick={() => state.moveThreshold(summary.threshold)}>Back to the run's</button>}
    </div>
    {isMoved && command && state.report.results && (
      <div class="live">
        <label for="command">Make it permanent</label>
        <input type="text" id="command" ref={field} readOnly value={command} />
        <button type="button" class="small" id="copy" onClick={() => void copy()}>{copied}</button>
      </div>
    )}
  </>;
}

function permanentCommand(state: ViewerState, threshold: number): string {
  const { results, methods } = state.report, at = threshold.toFixed(3);
  const method = methods.length > 1 ? ` --method ${quoted(state.summary.name)}` : "";
  return `clipspect results filter ${quoted(results)} -o ${quoted(`${results}-at-${at}`)}${method} --threshold ${at}`;
}
