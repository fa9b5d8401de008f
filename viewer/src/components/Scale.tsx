import { fixed } from "../format";
import { gradient } from "../scale";

interface ScaleProps {
  threshold: number | null;
  /** Score under the pointer. */
  value?: number | null;
}

/** Color scale from score 0 to 1 with the threshold, and the value under the pointer. */
export function Scale({ threshold, value = null }: ScaleProps) {
  return (
    <div class="scale" title="Colors of scores: heat starts at 0.25 and is fully opaque from 0.5, the same for every image">
      <span>0</span>
      <span class="scale-bar">
        <i style={{ background: gradient("90deg") }} />
        {threshold !== null && <b style={{ left: `${100 * threshold}%` }}><em>{fixed(threshold, 2)}</em></b>}
        {value !== null && <u style={{ left: `${100 * value}%` }} />}
      </span>
      <span>1</span>
      {value !== null && <span class="scale-value">{fixed(value)}</span>}
    </div>
  );
}
