import { useSignal } from "@preact/signals";
import { Findings } from "../components/Findings";
import { ThresholdControls } from "../components/Histogram";
import { Notes } from "../components/Header";
import { PictureView, type Mode } from "../components/PictureView";
import { WHOLE, type View } from "../components/Stage";
import type { ViewerState } from "../state";

/** The result of one image: its pictures at once, without a gallery. */
export function SingleResult({ state }: { state: ViewerState }) {
  const mode = useSignal<Mode>(state.report.methods.length > 1 ? "methods" : "side"), view = useSignal<View>(WHOLE);
  return <>
    <Notes state={state} />
    <section class="panel single" aria-label="Result">
      <h2 id="view-name">{state.rows[0].name}</h2>
      <ThresholdControls state={state} />
      <div class="detail">
        <PictureView state={state} index={0} mode={mode} view={view} />
        <Findings state={state} index={0} view={view} onDecide={(decision) => state.setReview(0, { decision })} />
      </div>
    </section>
  </>;
}
